-- Whoever holds a window has it locked; the lock dies with its holder.
SELECT id, tenant_id, user_id FROM digests
WHERE state <> 'closed' AND closes_at >= :from AND closes_at <= now()
ORDER BY closes_at LIMIT :limit
FOR UPDATE SKIP LOCKED
