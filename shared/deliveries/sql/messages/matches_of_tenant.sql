-- Walks the ids downwards, at most a window of them, and stops at the limit: a list costs as much as it shows. `f` is
-- one row of constants that the planner folds in. Messages are compared and ordered by (tenant, id). With a plain
-- equality on the tenant, the planner could walk the ids of all tenants instead, and the list of a quiet tenant would
-- read through the messages of a busy one.
SELECT m.id
FROM (SELECT :status::text AS status, :channel::text AS channel, :user_id::text AS user_id,
             :recipient::text AS recipient, lower(:part::text) AS part, lower(:json_part::text) AS json_part) f
CROSS JOIN (
    SELECT m.* FROM (SELECT :tenant::int4 AS tenant_id, :low::uuid AS low, :high::uuid AS high) r CROSS JOIN messages m
    WHERE m.id >= r.low AND m.id < r.high AND (m.tenant_id, m.id) >= (r.tenant_id, r.low)
      AND (m.tenant_id, m.id) < (r.tenant_id, r.high)
    ORDER BY m.tenant_id DESC, m.id DESC LIMIT :window) m
LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE (f.user_id IS NULL OR m.user_id = f.user_id)
  AND ((f.status IS NULL AND f.channel IS NULL AND f.recipient IS NULL) OR EXISTS (
        -- A delivery's id is less than a minute after its message's.
        SELECT 1 FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                      || '00000000000000000000')::uuid
          AND (f.status IS NULL OR d.state = f.status) AND (f.channel IS NULL OR d.channel = f.channel)
          AND (f.recipient IS NULL OR d.recipient = f.recipient)))
  AND (f.part IS NULL
       OR EXISTS (
        SELECT 1 FROM deliveries d
        WHERE d.message_id = m.id AND d.id >= m.id
          AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                      || '00000000000000000000')::uuid
          AND strpos(lower(d.recipient), f.part) > 0)
       OR CASE WHEN octet_length(coalesce(m.content, b.content)) <= 1048576
               THEN strpos(lower(convert_from(coalesce(m.content, b.content), 'UTF8')), f.json_part) > 0 END)
ORDER BY m.tenant_id DESC, m.id DESC LIMIT :limit
