SELECT coalesce((SELECT version FROM catalogues WHERE tenant_id = :tenant), 0::bigint)
