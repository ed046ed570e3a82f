INSERT INTO service_secrets (id, secret) VALUES (:id, :secret) ON CONFLICT DO NOTHING
