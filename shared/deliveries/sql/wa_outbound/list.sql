SELECT m.id AS message, d.id AS delivery, d.line AS session, d.recipient, d.state,
       EXISTS (SELECT 1 FROM delivery_events e WHERE e.delivery_id = d.id AND e.kind IN ('read', 'played')) AS is_read,
       d.kind, m.priority,
       -- Larger contents (files) are not read for a list.
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= :content_bytes_max
           THEN coalesce(m.content, b.content) END AS content,
       m.created_at, d.updated_at, m.scheduled_at
FROM (
    SELECT * FROM deliveries
    WHERE line = ANY (ARRAY(
            SELECT id FROM lines WHERE tenant_id = :tenant AND kind = 'session' AND id = coalesce(:session, id)))
      AND tenant_id = :tenant
      -- A delivery's id follows its message's, so one range of ids bounds both.
      AND id < :before
      AND id >= coalesce(uuid7_floor(:from::timestamptz), '00000000-0000-0000-0000-000000000000'::uuid)
      AND id < coalesce(uuid7_floor(:to::timestamptz + interval '1 millisecond'),
                        'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
      AND state = ANY (coalesce(:states::text[], ARRAY[state]))
    ORDER BY id DESC LIMIT :limit OFFSET :skip
) d
JOIN messages m ON m.id = d.message_id
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY d.id DESC
