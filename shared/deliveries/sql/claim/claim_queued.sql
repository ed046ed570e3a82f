-- A message that was accepted just before midnight, with a delivery created after it, is not found here;
-- `messages.sql` reads it.
WITH claimed AS (
    UPDATE deliveries@ d
    SET state = 'sending', run = d.run + 1, attempts = d.attempts + 1, updated_at = clock_timestamp(),
        lease_until = clock_timestamp() + h.lease_ms * interval '1 millisecond'
    FROM (SELECT *, :lease_ms::int4 AS lease_ms FROM unnest(:ids::uuid[], :runs::int4[]) AS u(id, run)) h
    WHERE d.id = h.id AND d.run = h.run AND d.state = 'queued'
    RETURNING d.id, d.run, d.message_id, d.tenant_id, d.recipient, d.line, d.attempts, d.deferrals, d.crashes, d.round,
              d.waiting_since
)
SELECT c.id, c.run, c.message_id, c.tenant_id, c.recipient, c.line, c.attempts, c.deferrals, c.crashes, c.round,
       c.waiting_since, m.user_id, coalesce(m.content, b.content) AS content, m.created_at AS accepted_at, m.expires_at,
       m.request_id, m.traceparent
FROM claimed c LEFT JOIN messages@ m ON m.id = c.message_id LEFT JOIN bulks b ON b.id = m.bulk_id
