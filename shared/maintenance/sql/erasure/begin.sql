INSERT INTO erasures (tenant_id, user_id, by_address) VALUES (:tenant, :user_id, :by_address)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET created_at = now(), due_at = now(), failures = 0,
    by_address = erasures.by_address OR excluded.by_address
RETURNING created_at AS asked_at, by_address
