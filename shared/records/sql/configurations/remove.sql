DELETE FROM webhook_configurations WHERE tenant_id = :tenant AND id = :id
