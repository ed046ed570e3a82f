SELECT count(*) FROM rules WHERE tenant_id = :tenant
