SELECT id, token, platform, created_at FROM devices WHERE tenant_id = :tenant AND user_id = :user_id ORDER BY id
