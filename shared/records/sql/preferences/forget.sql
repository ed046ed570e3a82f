UPDATE users SET preferences = NULL, updated_at = now()
WHERE tenant_id = :tenant AND user_id = :user_id AND preferences IS NOT NULL
