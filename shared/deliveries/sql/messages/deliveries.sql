-- The fence makes each message look up its own deliveries, instead of reading a range for all together. A delivery's id
-- is less than a minute after its message's.
SELECT d.message_id, d.id, d.channel, d.recipient, d.state, d.provider,
       (SELECT count(*) FROM delivery_events e WHERE e.delivery_id = d.id AND e.provider IS NOT NULL) AS attempts,
       d.updated_at,
       ARRAY(SELECT DISTINCT e.kind FROM delivery_events e
             WHERE e.delivery_id = d.id AND e.kind = ANY (:engagement::text[])
             ORDER BY 1) AS engagement,
       d.reason, (SELECT u.due_at FROM due u WHERE u.delivery_id = d.id AND u.why <> 'watch') AS due_at
FROM unnest(:ids::uuid[]) AS asked(id) CROSS JOIN LATERAL (
    SELECT * FROM deliveries d
    WHERE d.message_id = asked.id AND d.id >= asked.id
      AND d.id < (lpad(to_hex(('x' || translate(left(asked.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                  || '00000000000000000000')::uuid
    OFFSET 0) d
ORDER BY d.id
