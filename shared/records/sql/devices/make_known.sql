INSERT INTO users (tenant_id, user_id, profile) VALUES (:tenant, :user_id, :profile)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET profile = excluded.profile, updated_at = clock_timestamp()
    WHERE users.profile IS NULL
