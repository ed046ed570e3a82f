WITH free AS MATERIALIZED (
    SELECT m.id, m.bulk_id, f.blank
    FROM (SELECT :tenant::int4 AS tenant_id, :ids::uuid[] AS ids, :blank::bytea AS blank) f
    CROSS JOIN unnest(f.ids) AS asked(id)
    JOIN messages m ON m.id = asked.id
    -- Only messages whose deliveries have all ended. The ids of a message's deliveries are within the minute after its
    -- own.
    WHERE m.tenant_id = f.tenant_id AND NOT EXISTS (
        SELECT 1 FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
          AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))
), theirs AS MATERIALIZED (
    SELECT d.id, d.recipient FROM free m CROSS JOIN LATERAL (
        SELECT d.id, d.recipient FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                     || '00000000000000000000')::uuid
        OFFSET 0) d
), unaddressed AS (
    UPDATE deliveries d SET recipient = '', recipient_hash = NULL FROM theirs t WHERE d.id = t.id RETURNING 1
), closed AS (
    UPDATE dead_letters l SET status = 'dropped' FROM theirs t
    WHERE l.delivery_id = t.id AND l.status = 'open' RETURNING 1
), emptied AS (
    -- The message gets empty content of its own, and no longer refers to the bulk's.
    UPDATE messages m SET user_id = NULL, content = f.blank FROM free f WHERE m.id = f.id RETURNING 1
)
SELECT (SELECT count(*) FROM emptied) AS messages,
       (SELECT count(*) FROM unaddressed) AS deliveries,
       (SELECT count(*) FROM closed) AS letters,
       ARRAY(SELECT recipient FROM theirs) AS recipients,
       ARRAY(SELECT DISTINCT bulk_id FROM free WHERE bulk_id IS NOT NULL) AS bulks,
       ARRAY(SELECT id FROM theirs) AS theirs
