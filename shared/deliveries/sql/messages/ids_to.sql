SELECT m.id FROM messages m
WHERE m.tenant_id = :tenant AND m.user_id = :user_id AND m.id < :before ORDER BY m.id DESC LIMIT :limit
