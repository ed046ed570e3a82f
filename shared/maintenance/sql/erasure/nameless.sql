-- Messages to these numbers that name no person, and whether a delivery of each has not ended. The ids of a message's
-- deliveries are within the minute after its own.
SELECT m.id, EXISTS (
        SELECT 1 FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
          AND d.state IN ('scheduled', 'queued', 'sending', 'retrying')) AS is_alive
FROM (SELECT DISTINCT d.message_id
      FROM (SELECT :tenant::int4 AS tenant_id, :hashes::bytea[] AS hashes) f
      JOIN deliveries d ON d.recipient_hash = ANY (f.hashes)
      WHERE d.tenant_id = f.tenant_id AND d.channel IN ('whatsapp', 'sms')) x
JOIN messages m ON m.id = x.message_id
WHERE m.user_id IS NULL
LIMIT :limit
