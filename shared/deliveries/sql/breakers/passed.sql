WITH asked AS (SELECT :key::text AS key, :host::text AS host
), before AS (SELECT b.state FROM breakers b JOIN asked a ON b.key = a.key
), closed AS (
    UPDATE breakers b SET state = 'closed', failures = 0,
        since = CASE WHEN b.state = 'closed' THEN b.since ELSE now() END
    FROM asked a WHERE b.key = a.key AND (b.state <> 'closed' OR b.failures > 0)
    RETURNING b.key
), heard AS (
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id FROM (
              SELECT (SELECT min(id) FROM tenants), NULL::text, NULL::uuid, 'breaker.closed', clock_timestamp(),
                     NULL::uuid, NULL::int4,
                     jsonb_build_object('key', key, 'provider', split_part(key, '/', 1), 'state', 'closed')
              FROM closed WHERE (SELECT state FROM before) <> 'closed'
          ) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
)
-- The lines behind a breaker: the session's own, or those of every session of its tenant at the host.
UPDATE lines l SET blocked_until = '-infinity', free_at = least(l.free_at, now())
FROM closed c, asked a
WHERE (SELECT state FROM before) <> 'closed' AND l.blocked_until > now() AND l.id IN (
    SELECT s.id FROM wa_sessions s
    WHERE s.id::text = split_part(c.key, '/', 3)
       OR (starts_with(c.key, a.host) AND starts_with(a.host || s.tenant_id || '/' || s.base_url, c.key)))
