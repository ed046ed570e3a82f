UPDATE parked SET expires_at = now() + :lease_ms::int4 * interval '1 millisecond'
WHERE delivery_id = ANY (ARRAY(
    SELECT delivery_id FROM parked WHERE expires_at <= now() ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED))
RETURNING delivery_id AS id, run
