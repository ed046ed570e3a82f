-- The look-ups cost time per delivery, so one statement is limited by the deliveries that its rows hold. Rows beyond
-- the limit wait for the next pass.
WITH due_rows AS MATERIALIZED (
    SELECT id, act_at, created_at, deliveries, runs, routes FROM outbox
    WHERE published_at IS NOT NULL AND act_at <= now() ORDER BY act_at LIMIT :rows FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT id, created_at, deliveries, runs, routes
    FROM (
        SELECT *, sum(cardinality(deliveries)) OVER (ORDER BY act_at, id) - cardinality(deliveries) AS before
        FROM due_rows) r
    WHERE before < :deliveries
), waiting AS MATERIALIZED (
    SELECT p.id AS row_id, d.id, u.run, u.route, d.state, d.run AS now_run, d.lease_until,
           d.state = 'queued' AND u.route = ANY (:empty::text[]) AS lost
    FROM picked p
    CROSS JOIN LATERAL unnest(p.deliveries, p.runs, p.routes) AS u(id, run, route)
    JOIN deliveries d ON d.id = u.id
    WHERE (d.state = 'queued' AND d.run = u.run AND NOT EXISTS (SELECT 1 FROM parked k WHERE k.delivery_id = d.id))
       OR (d.state = 'sending' AND d.run = u.run + 1)
), shrunk AS MATERIALIZED (
    SELECT row_id, array_agg(id) AS deliveries, array_agg(run) AS runs, array_agg(route) AS routes,
           bool_or(lost) AS lost
    FROM waiting GROUP BY row_id
), gone AS (
    DELETE FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM picked EXCEPT SELECT row_id FROM shrunk))
), kept AS (
    UPDATE outbox o
    SET deliveries = s.deliveries, runs = s.runs, routes = s.routes,
        published_at = CASE WHEN s.lost THEN NULL ELSE o.published_at END,
        act_at = CASE WHEN s.lost THEN now()
                 ELSE now() + least(greatest(now() - o.created_at, interval '1 second'), interval '10 minutes') END
    FROM shrunk s WHERE o.id = s.row_id
), watched AS (
    -- Watches are set in the order of the ids, as in every other statement.
    INSERT INTO due (delivery_id, due_at, run, why)
    SELECT id, greatest(lease_until, now()), now_run, 'watch' FROM waiting WHERE state = 'sending' ORDER BY id
    ON CONFLICT (delivery_id) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM due_rows) AS due, (SELECT count(*) FROM picked) AS seen,
       (SELECT count(*) FROM shrunk WHERE lost) AS lost, (SELECT count(*) FROM watched) AS watched
