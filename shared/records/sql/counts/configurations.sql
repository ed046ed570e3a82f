SELECT count(*) FROM webhook_configurations WHERE tenant_id = :tenant
