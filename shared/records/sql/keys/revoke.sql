UPDATE api_keys SET revoked_at = now()
WHERE id = :id AND revoked_at IS NULL AND tenant_id = coalesce(:tenant, tenant_id)
RETURNING tenant_id
