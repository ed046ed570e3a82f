-- The rows are picked in a CTE that is an optimisation fence, so that the planner cannot take more of them than the
-- limit.
WITH picked AS MATERIALIZED (
    SELECT delivery_id, run FROM due WHERE due_at >= :floor AND due_at <= now() AND why <> 'watch'
    ORDER BY due_at LIMIT :limit
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked))
), released AS (
    UPDATE deliveries d SET state = 'queued', reason = NULL, updated_at = clock_timestamp()
    FROM picked p WHERE d.id = p.delivery_id AND d.run = p.run AND d.state IN ('scheduled', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.lane, d.channel || '.' || d.lane AS route,
              (SELECT l.id FROM lines l WHERE l.id = d.line) AS line, d.rank, d.expires_at
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
SELECT (SELECT count(*) FROM picked) AS picked, b.id, b.deliveries, b.runs, b.routes
FROM (SELECT) one LEFT JOIN boxed b ON true
