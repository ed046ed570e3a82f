SELECT preferences::text FROM users WHERE tenant_id = :tenant AND user_id = :user_id
