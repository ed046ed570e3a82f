SELECT preferences::text AS preferences, profile FROM users
WHERE tenant_id = :tenant AND user_id = :user_id FOR UPDATE
