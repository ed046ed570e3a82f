-- Takes slots first, then makes the claims that they allow. A slot is wasted if its claim then fails, but the limit
-- still holds. A deleted line limits nothing: the provider finds no session, and the delivery ends as a dead letter
-- that an admin sees.
WITH hinted AS MATERIALIZED (
    SELECT d.id, d.run, d.line, d.rank, d.expires_at
    FROM unnest(:ids::uuid[], :runs::int4[]) AS u(id, run) JOIN deliveries@ d ON d.id = u.id
    WHERE d.run = u.run AND d.state = 'queued'
), asked AS (
    SELECT array_agg(line ORDER BY line) AS lines, array_agg(n ORDER BY line) AS wanted
    FROM (SELECT line, count(*)::int4 AS n FROM hinted WHERE line IS NOT NULL GROUP BY line) g
), granted AS MATERIALIZED (
    SELECT t.line, t.n FROM asked CROSS JOIN LATERAL take_slots(asked.lines, asked.wanted) t
), ranked AS MATERIALIZED (
    SELECT h.id, h.run, h.line, h.rank, h.expires_at,
           g.line IS NULL OR row_number() OVER (PARTITION BY h.line ORDER BY h.rank DESC, h.id) <= g.n AS has_slot
    FROM hinted h LEFT JOIN granted g ON g.line = h.line
), claimed AS (
    UPDATE deliveries@ d
    SET state = 'sending', run = d.run + 1, attempts = d.attempts + 1, updated_at = clock_timestamp(),
        lease_until = clock_timestamp() + r.lease_ms * interval '1 millisecond'
    FROM (SELECT *, :lease_ms::int4 AS lease_ms FROM ranked WHERE has_slot) r
    WHERE d.id = r.id AND d.run = r.run AND d.state = 'queued'
    RETURNING d.id, d.run, d.message_id, d.tenant_id, d.recipient, d.line, d.attempts, d.deferrals, d.crashes, d.round,
              d.waiting_since
), put_back AS (
    INSERT INTO parked (delivery_id, line, run, rank, expires_at)
    SELECT id, line, run, rank, expires_at FROM ranked WHERE NOT has_slot
    ON CONFLICT DO NOTHING
)
SELECT c.id, c.run, c.message_id, c.tenant_id, c.recipient, c.line, c.attempts, c.deferrals, c.crashes, c.round,
       c.waiting_since, m.user_id, coalesce(m.content, b.content) AS content, m.created_at AS accepted_at, m.expires_at,
       m.request_id, m.traceparent
FROM claimed c LEFT JOIN messages@ m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id
