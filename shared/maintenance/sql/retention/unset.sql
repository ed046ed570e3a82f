DELETE FROM retention WHERE tenant_id = :tenant
