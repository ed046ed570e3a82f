-- Works as when a producer cancels a message.
WITH seen AS MATERIALIZED (
    SELECT w.id, w.at, w.carrier FROM webhook_events w
    WHERE w.configuration_id = :configuration AND w.at >= :from AND w.at > now() - interval '8 days'
    ORDER BY w.at LIMIT :limit
), waiting AS MATERIALIZED (
    SELECT s.id, s.carrier FROM seen s
    CROSS JOIN LATERAL (SELECT d.state FROM deliveries d WHERE d.id = s.carrier OFFSET 0) d
    WHERE d.state IN ('queued', 'retrying') ORDER BY s.id
), moved AS (
    UPDATE deliveries d
    SET state = 'cancelled', lease_until = NULL, updated_at = clock_timestamp(),
        reached = d.reached | 128::smallint, fresh = 128::smallint & ~d.reached
    FROM waiting w WHERE d.id = w.carrier AND d.state IN ('queued', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id FROM due WHERE delivery_id = ANY (ARRAY(SELECT id FROM moved)) FOR UPDATE SKIP LOCKED))
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at, detail)
    SELECT id, run, 'cancelled', tenant_id, channel, clock_timestamp(),
           'its configuration is off: the event is held'
    FROM moved
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, channel, kind, at
), daily AS (
    -- Rows are taken in one order, so that two writers never wait for each other in a circle.
    INSERT INTO daily_counts (day, tenant_id, channel, provider, category, template, kind, n)
    SELECT r.day, r.tenant_id, r.channel, r.provider, r.category, r.template, k.kind, sum(r.n)
    FROM (SELECT uuid7_day(f.id) AS day, f.tenant_id, f.channel, coalesce(f.provider, '') AS provider,
                 coalesce(f.category, '') AS category, coalesce(f.template, '') AS template, f.fresh, count(*) AS n
          FROM (
              SELECT id, tenant_id, channel, provider, category, template, fresh FROM moved
          ) AS f (id, tenant_id, channel, provider, category, template, fresh)
          WHERE f.fresh <> 0 GROUP BY 1, 2, 3, 4, 5, 6, 7) r
    JOIN (VALUES (1, 'sent'), (2, 'delivered'), (4, 'failed'), (8, 'bounced'), (16, 'dead'), (32, 'suppressed'),
                 (64, 'expired'), (128, 'cancelled'), (256, 'read'), (512, 'opened'), (1024, 'clicked'),
                 (2048, 'complained'), (4096, 'tried'), (8192, 'wrong')) AS k (bit, kind)
      ON r.fresh & k.bit <> 0
    GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (tenant_id, day, channel, provider, category, template, kind)
        DO UPDATE SET n = daily_counts.n + excluded.n
), held AS (
    UPDATE webhook_events w SET carrier = NULL FROM waiting t, moved v WHERE w.id = t.id AND v.id = t.carrier
)
SELECT (SELECT count(*) FROM seen) AS seen, (SELECT max(at) FROM seen) AS last
