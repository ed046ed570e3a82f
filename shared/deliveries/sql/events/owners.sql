SELECT id, tenant_id, channel FROM deliveries@ WHERE id = ANY (:ids::uuid[])
