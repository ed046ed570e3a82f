-- Takes rows that were not published in time, and moves the moment at which another caller may take them.
UPDATE outbox SET act_at = now() + :lease_ms::int4 * interval '1 millisecond'
WHERE id = ANY (ARRAY(
    SELECT id FROM outbox WHERE published_at IS NULL AND act_at <= now() ORDER BY act_at LIMIT :limit
    FOR UPDATE SKIP LOCKED))
RETURNING id, deliveries, runs, routes
