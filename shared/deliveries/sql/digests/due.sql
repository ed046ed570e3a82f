-- The holder of a window has it locked; the lock ends with the holder's connection.
SELECT id, tenant_id, user_id FROM digests
WHERE state <> 'closed' AND closes_at >= :from AND closes_at <= now()
ORDER BY closes_at LIMIT :limit
FOR UPDATE SKIP LOCKED
