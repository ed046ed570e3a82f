SELECT id, body, created_at AS kept_at FROM unread_events WHERE id > :after AND body <> '' ORDER BY id LIMIT :limit
