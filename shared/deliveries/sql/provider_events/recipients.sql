SELECT id, tenant_id, channel, recipient FROM deliveries@ WHERE id = ANY (:ids::uuid[])
