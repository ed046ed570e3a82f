WITH turn AS MATERIALIZED (
    SELECT id FROM lines WHERE route = :route AND is_waiting AND kind = 'share'
    ORDER BY released_at, id LIMIT :shares FOR UPDATE SKIP LOCKED
), part AS (
    SELECT greatest(1, :room::int4 / greatest(1, count(*))) AS n FROM turn
), picked AS MATERIALIZED (
    SELECT p.delivery_id, p.run FROM turn t CROSS JOIN part CROSS JOIN LATERAL (
        SELECT delivery_id, run FROM parked WHERE line = t.id ORDER BY rank DESC, delivery_id LIMIT part.n) p
), gone AS (
    DELETE FROM parked WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked))
), served AS (
    UPDATE lines SET released_at = now() WHERE id = ANY (ARRAY(SELECT id FROM turn))
), released AS MATERIALIZED (
    SELECT d.id, d.run, d.channel || '.' || d.lane AS route
    FROM picked p JOIN deliveries d ON d.id = p.delivery_id WHERE d.run = p.run AND d.state = 'queued'
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
