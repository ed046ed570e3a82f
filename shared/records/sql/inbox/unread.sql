SELECT count(*) FROM inbox
WHERE tenant_id = :tenant AND user_id = :user_id AND read_at IS NULL AND archived_at IS NULL
