UPDATE users SET preferences = :preferences::text::jsonb WHERE tenant_id = :tenant AND user_id = :user_id
