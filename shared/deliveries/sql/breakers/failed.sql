WITH asked AS (
    SELECT :key::text AS key, :failures_max::int4 AS failures_max,
           now() + :open_ms::int4 * interval '1 millisecond' AS until, :host::text AS host
), before AS (SELECT b.state FROM breakers b JOIN asked a ON b.key = a.key
), counted AS (
    INSERT INTO breakers AS b (key, provider, state, failures, retry_at)
    SELECT key, split_part(key, '/', 1), CASE WHEN failures_max <= 1 THEN 'open' ELSE 'closed' END, 1, until FROM asked
    ON CONFLICT (key) DO UPDATE SET
        failures = b.failures + 1,
        state = CASE WHEN b.state = 'half_open' OR b.failures + 1 >= (SELECT failures_max FROM asked)
                     THEN 'open' ELSE b.state END,
        since = CASE WHEN b.state = 'half_open'
                       OR (b.state = 'closed' AND b.failures + 1 >= (SELECT failures_max FROM asked))
                     THEN now() ELSE b.since END,
        retry_at = CASE WHEN b.state = 'open' THEN b.retry_at ELSE excluded.retry_at END
    RETURNING key, state, failures, since, retry_at,
              CASE WHEN paused_until > now() THEN paused_until END AS paused_until
), stopped AS (
    -- The lines behind a breaker: the session's own, or those of every session of its tenant at the host.
    UPDATE lines l SET blocked_until = greatest(l.blocked_until, c.retry_at), free_at = greatest(l.free_at, c.retry_at)
    FROM counted c, asked a
    WHERE c.state = 'open' AND coalesce((SELECT state FROM before), 'closed') <> 'open' AND l.id IN (
        SELECT s.id FROM wa_sessions s
        WHERE s.id::text = split_part(c.key, '/', 3)
           OR (starts_with(c.key, a.host) AND starts_with(a.host || s.tenant_id || '/' || s.base_url, c.key)))
), heard AS (
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id FROM (
              SELECT (SELECT min(id) FROM tenants), NULL::text, NULL::uuid, 'breaker.opened', clock_timestamp(),
                     NULL::uuid, NULL::int4, jsonb_build_object('key', key, 'provider', split_part(key, '/', 1),
                         'state', state, 'failures', failures, 'retry_at', retry_at)
              FROM counted WHERE state = 'open' AND coalesce((SELECT state FROM before), 'closed') = 'closed'
          ) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
)
SELECT key, state, failures, since, retry_at, paused_until FROM counted
