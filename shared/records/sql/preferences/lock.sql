INSERT INTO users (tenant_id, user_id) VALUES (:tenant, :user_id)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET updated_at = now()
RETURNING preferences::text AS preferences, profile
