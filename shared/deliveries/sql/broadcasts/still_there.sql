SELECT user_id FROM users WHERE tenant_id = :tenant AND user_id = ANY (:ids::text[])
