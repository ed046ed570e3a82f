INSERT INTO breakers AS b (key, provider, state, failures, retry_at, paused_until)
SELECT key, split_part(key, '/', 1), 'closed', 0, now(), now() + wait * interval '1 millisecond'
FROM (SELECT :key::text, :wait_ms::int4) asked(key, wait)
ON CONFLICT (key) DO UPDATE SET paused_until = greatest(b.paused_until, excluded.paused_until)
RETURNING key, state, failures, since, retry_at, paused_until
