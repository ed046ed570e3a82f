UPDATE breakers SET state = 'half_open', since = CASE WHEN state = 'half_open' THEN since ELSE now() END,
    retry_at = now() + :probe_ms::int4 * interval '1 millisecond'
WHERE key = :key AND state IN ('open', 'half_open') AND retry_at <= now()
RETURNING true
