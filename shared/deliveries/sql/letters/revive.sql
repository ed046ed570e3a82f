-- Letters, deliveries, log and outbox in one commit; the letters are taken in one order, so that two replays over the
-- same ones wait for each other instead of blocking each other.
WITH asked AS (
    SELECT :replay::uuid AS replay_id
), letters AS MATERIALIZED (
    SELECT id, delivery_id FROM dead_letters
    WHERE id = ANY (:letters::uuid[]) AND status = 'open' AND delivery_id IS NOT NULL
    ORDER BY id FOR UPDATE
), released AS (
    UPDATE deliveries d
    SET state = 'queued', run = d.run + 1, attempts = 0, deferrals = 0, crashes = 0, round = 0, waiting_since = NULL,
        lease_until = NULL, updated_at = clock_timestamp()
    FROM (SELECT DISTINCT delivery_id FROM letters) l
    WHERE d.id = l.delivery_id AND d.state = 'dead'
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.lane, d.channel || '.' || d.lane AS route,
              (SELECT l.id FROM lines l WHERE l.id = d.line) AS line, d.rank, d.expires_at
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at)
    SELECT id, run, 'replayed', tenant_id, channel, clock_timestamp() FROM released
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, channel, kind, at
), moved AS (
    UPDATE dead_letters l SET status = 'replayed', replay_id = asked.replay_id
    FROM asked, letters
    WHERE l.id = letters.id AND letters.delivery_id IN (SELECT id FROM released)
    RETURNING 1
), noted AS (
    UPDATE replays r SET replayed = r.replayed + (SELECT count(*) FROM moved) FROM asked WHERE r.id = asked.replay_id
), grouped AS MATERIALIZED (
    -- A delivery that needs a slot of a session goes into its line. Of the others, those of a tenant with too many deliveries of
    -- the route (`CROWD_MAX`), of the bulk lane, and of a route whose queue is full go into the tenant's share. The
    -- share's id is computed once per tenant and route.
    SELECT tenant_id, route, array_agg(id) AS ids, array_agg(run) AS runs, array_agg(rank) AS ranks,
           CASE WHEN lane = 'bulk' OR route = ANY (:full::text[]) OR count(*) > 100
                THEN share_line(tenant_id, route) END AS share
    FROM released WHERE line IS NULL GROUP BY tenant_id, lane, route
), placed AS MATERIALIZED (
    SELECT g.route, g.share, u.id, u.run, u.rank
    FROM grouped g CROSS JOIN LATERAL unnest(g.ids, g.runs, g.ranks) AS u(id, run, rank)
), new_shares AS (
    INSERT INTO lines (id, tenant_id, kind, route)
    SELECT share, tenant_id, 'share', route FROM grouped WHERE share IS NOT NULL ORDER BY 1
    ON CONFLICT DO NOTHING
), lined_up AS (
    INSERT INTO parked (delivery_id, line, run, rank, expires_at)
    SELECT id, line, run, rank, expires_at FROM released WHERE line IS NOT NULL
    UNION ALL
    SELECT id, share, run, rank, NULL FROM placed WHERE share IS NOT NULL
    ON CONFLICT (delivery_id) DO UPDATE SET run = excluded.run
), boxed AS (
    -- Outbox rows of at most 500 deliveries, so that the work for one outbox row is bounded.
    INSERT INTO outbox (act_at, deliveries, runs, routes)
    SELECT now() + :relay_after_ms::int4 * interval '1 millisecond', array_agg(id), array_agg(run), array_agg(route)
    FROM (SELECT id, run, route, (row_number() OVER () - 1) / 500 AS box FROM placed WHERE share IS NULL) numbered
    GROUP BY box
    RETURNING id, deliveries, runs, routes
)
SELECT (SELECT count(*) FROM released) AS picked, b.id, b.deliveries, b.runs, b.routes
FROM (SELECT) one LEFT JOIN boxed b ON true
