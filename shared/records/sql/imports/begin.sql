INSERT INTO imports (id, tenant_id) VALUES (:id, :tenant)
