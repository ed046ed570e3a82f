-- Messages to the person, and whether a delivery of each has not ended. The ids of a message's deliveries are within
-- the minute after its own.
SELECT m.id, EXISTS (
        SELECT 1 FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
          AND d.state IN ('scheduled', 'queued', 'sending', 'retrying')) AS is_alive
FROM (SELECT :tenant::int4 AS tenant_id, :user_id::text AS user_id, :asked_at::timestamptz AS asked_at,
             :after::uuid AS after) f
CROSS JOIN messages m
WHERE m.tenant_id = f.tenant_id AND m.user_id = f.user_id AND m.created_at <= f.asked_at AND m.id > f.after
ORDER BY m.id LIMIT :limit
