WITH picked AS MATERIALIZED (
    SELECT id FROM waha_events
    WHERE status = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE waha_events e
SET due_at = now() + :lease_ms::int4 * interval '1 millisecond', tries = least(e.tries, 32000) + 1
FROM picked WHERE e.id = picked.id
RETURNING e.id, e.tenant_id, e.session_id, e.event, e.body, e.tries, e.created_at
