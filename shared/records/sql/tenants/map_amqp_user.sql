INSERT INTO amqp_users (username, tenant_id) VALUES (:username, :tenant)
ON CONFLICT (username) DO UPDATE SET tenant_id = excluded.tenant_id
