-- Longest due first.
UPDATE erasures e SET due_at = now() + :lease * interval '1 second'
FROM (SELECT tenant_id, user_id FROM erasures
      WHERE due_at <= now() AND created_at < now() - :attended * interval '1 second'
      ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED) p
WHERE e.tenant_id = p.tenant_id AND e.user_id = p.user_id
RETURNING e.tenant_id, e.user_id, e.created_at AS asked_at, e.by_address
