SELECT id, event_type, data, created_at FROM event_log
WHERE tenant_id = :tenant AND user_id = :user_id AND id < :before ORDER BY id DESC LIMIT :limit
