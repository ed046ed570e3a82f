-- Counts what `delete_messages.sql` would delete.
WITH picked AS MATERIALIZED (
    SELECT m.id FROM messages@ m
    WHERE m.tenant_id = :tenant AND m.id >= :low AND m.id > :after AND m.id < :high
    ORDER BY m.id LIMIT :limit
), over AS MATERIALIZED (
    -- Only messages whose deliveries have all ended. The ids of a message's deliveries are within the minute after its
    -- own.
    SELECT p.id FROM picked p WHERE NOT EXISTS (
        SELECT 1 FROM deliveries@ d
        WHERE d.message_id = p.id AND d.id >= p.id
          AND d.id < (lpad(to_hex(('x' || translate(left(p.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
          AND (d.state IN ('scheduled', 'queued', 'sending', 'retrying')
               OR EXISTS (SELECT 1 FROM due w WHERE w.delivery_id = d.id)
               OR EXISTS (SELECT 1 FROM parked k WHERE k.delivery_id = d.id)))
), theirs AS MATERIALIZED (
    SELECT d.id FROM over o CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries@ d
        WHERE d.message_id = o.id AND d.id >= o.id
          AND d.id < (lpad(to_hex(('x' || translate(left(o.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
        OFFSET 0) d
)
SELECT ARRAY(SELECT id FROM picked ORDER BY id DESC LIMIT 1) AS last,
       (SELECT count(*) FROM over) AS messages,
       (SELECT count(*) FROM theirs) AS deliveries,
       (SELECT count(*) FROM theirs t JOIN delivery_events@ e ON e.delivery_id = t.id) AS events,
       (SELECT count(*) FROM theirs t JOIN dead_letters l ON l.delivery_id = t.id) AS letters
