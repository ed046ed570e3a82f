INSERT INTO api_keys (id, tenant_id, role, name, hash) VALUES (:id, :tenant, :role, :name, :hash)
