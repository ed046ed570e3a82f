DELETE FROM idempotency_keys WHERE (tenant_id, key_hash) IN (
    SELECT tenant_id, key_hash FROM idempotency_keys
    WHERE created_at < now() - :hours::int4 * interval '1 hour' LIMIT :limit
    FOR UPDATE SKIP LOCKED)
