WITH theirs AS MATERIALIZED (
    -- The ids of a message's deliveries are within the minute after its own.
    SELECT d.id FROM (SELECT :tenant::int4 AS tenant_id, :ids::uuid[] AS ids) f
    JOIN messages m ON m.id = ANY (f.ids) AND m.tenant_id = f.tenant_id
    CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
        OFFSET 0) d
), gone AS (DELETE FROM unread_events u USING theirs t WHERE u.delivery_id = t.id AND u.body = '' RETURNING u.id
), emptied AS (
    -- The note of an outcome has the id of its letter. A replayed letter stays, because its outcome is on its way.
    UPDATE dead_letters l
    SET body = NULL, detail = '', status = CASE l.status WHEN 'open' THEN 'dropped' ELSE l.status END
    FROM gone g WHERE l.id = g.id RETURNING 1)
SELECT count(*) FROM emptied
