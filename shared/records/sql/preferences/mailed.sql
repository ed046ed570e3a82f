-- The addresses of the newest mails to a person.
SELECT d.recipient
FROM (SELECT :tenant::int4 AS tenant_id, :user_id::text AS user_id) f
CROSS JOIN LATERAL (
    SELECT m.id FROM messages m WHERE m.tenant_id = f.tenant_id AND m.user_id = f.user_id
    ORDER BY m.id DESC LIMIT 200) m
CROSS JOIN LATERAL (
    -- The upper bound is the smallest UUIDv7 a minute after the message's id.
    SELECT d.recipient FROM deliveries d
    WHERE d.message_id = m.id AND d.channel = 'email' AND d.id >= m.id
      AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
          || '00000000000000000000')::uuid
    OFFSET 0) d
