WITH ready AS MATERIALIZED (
    -- A released delivery whose hint is lost with its worker stops counting as in flight after half a minute.
    SELECT l.id, CASE WHEN l.released_at > now() - interval '30 seconds' THEN l.released ELSE 0 END AS out,
           slots_free(l, now()) AS free
    FROM lines l WHERE l.is_waiting AND l.is_open AND l.kind = 'session' AND l.free_at <= now()
    ORDER BY l.free_at LIMIT :limit FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT p.delivery_id, p.run, p.line FROM ready r CROSS JOIN LATERAL (
        SELECT delivery_id, run, line FROM parked WHERE line = r.id ORDER BY rank DESC, delivery_id
        LIMIT greatest(0, least(r.free - r.out, 200))) p
), gone AS (
    DELETE FROM parked WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked))
), released AS MATERIALIZED (
    SELECT d.id, d.run, d.channel || '.' || d.lane AS route, p.line
    FROM picked p JOIN deliveries d ON d.id = p.delivery_id WHERE d.run = p.run AND d.state = 'queued'
), pushed AS (
    UPDATE lines l SET released = k.out + k.n, released_at = now(), free_at = now() + interval '1 second'
    FROM (SELECT r.id, r.out, (SELECT count(*) FROM released x WHERE x.line = r.id) AS n FROM ready r) k
    WHERE l.id = k.id
), boxed AS (
    -- Outbox rows of at most 500 deliveries, so that the work for one outbox row is bounded.
    INSERT INTO outbox (act_at, deliveries, runs, routes)
    SELECT now() + :relay_after_ms::int4 * interval '1 millisecond', array_agg(id), array_agg(run), array_agg(route)
    FROM (SELECT id, run, route, (row_number() OVER () - 1) / 500 AS box FROM released) numbered
    GROUP BY box
    RETURNING id, deliveries, runs, routes
)
SELECT (SELECT count(*) FROM picked) AS picked, b.id, b.deliveries, b.runs, b.routes
FROM (SELECT) one LEFT JOIN boxed b ON true
