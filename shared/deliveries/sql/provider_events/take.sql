WITH picked AS MATERIALIZED (
    SELECT id FROM provider_events
    WHERE status = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE provider_events e
SET due_at = now() + :lease_ms::int4 * interval '1 millisecond', tries = least(e.tries, 32000) + 1
FROM picked WHERE e.id = picked.id
RETURNING e.id, e.teller AS source, e.body, e.tries, e.created_at
