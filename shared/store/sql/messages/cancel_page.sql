-- Takes back the deliveries of a broadcast between two of them that wait, with their log rows and counts.
WITH moved AS (
    UPDATE deliveries d SET state = 'cancelled', lease_until = NULL, updated_at = clock_timestamp(),
        reached = d.reached | 128::smallint, fresh = 128::smallint & ~d.reached
    FROM (SELECT :broadcast::uuid AS broadcast_id, :tenant::int4 AS tenant_id, :first::uuid AS first,
                 :last::uuid AS last) asked
    WHERE d.id >= asked.first AND d.id <= asked.last AND d.tenant_id = asked.tenant_id
      AND EXISTS (SELECT 1 FROM messages m WHERE m.id = d.message_id AND m.bulk_id = asked.broadcast_id)
      AND d.state IN ('scheduled', 'queued', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), gone AS (
    -- Due rows that the release is taking at this moment are left to it: it drops what is no longer waiting, and
    -- waiting for its lock while holding the delivery's could deadlock.
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id FROM due WHERE delivery_id = ANY (ARRAY(SELECT id FROM moved)) FOR UPDATE SKIP LOCKED))
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at)
    SELECT id, run, 'cancelled', tenant_id, channel, clock_timestamp() FROM moved
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, run, tenant_id, channel, kind, at
), heard AS (
    -- One event for each configuration of the tenant that subscribed to it. A configuration gets no events about its
    -- own deliveries, and deliveries that carry events produce none; `OFFSET 0` is an optimisation fence that skips
    -- this check where there is no configuration.
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id
          FROM (SELECT tenant_id, channel, delivery_id, 'message.cancelled', at, delivery_id, run,
                       jsonb_build_object('delivery_id', delivery_id, 'channel', channel, 'status', kind)
                FROM logged) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
      AND NOT (x.channel = 'webhook' AND EXISTS (
          SELECT 1 FROM deliveries@ d JOIN messages@ m ON m.id = d.message_id
          WHERE d.id = x.delivery AND m.source = 'event'))
), daily AS (
    -- Adds to the counts what the update has added to deliveries. Rows are taken in one order, so that two writers
    -- never wait for each other in a circle.
    INSERT INTO daily_counts (day, tenant_id, channel, provider, category, template, kind, n)
    SELECT r.day, r.tenant_id, r.channel, r.provider, r.category, r.template, k.kind, sum(r.n)
    FROM (SELECT uuid7_day(f.id) AS day, f.tenant_id, f.channel, coalesce(f.provider, '') AS provider,
                 coalesce(f.category, '') AS category, coalesce(f.template, '') AS template, f.fresh, count(*) AS n
          FROM (SELECT id, tenant_id, channel, provider, category, template, fresh FROM moved)
              AS f (id, tenant_id, channel, provider, category, template, fresh)
          WHERE f.fresh <> 0 GROUP BY 1, 2, 3, 4, 5, 6, 7) r
    JOIN (VALUES (1, 'sent'), (2, 'delivered'), (4, 'failed'), (8, 'bounced'), (16, 'dead'), (32, 'suppressed'),
                 (64, 'expired'), (128, 'cancelled'), (256, 'read'), (512, 'opened'), (1024, 'clicked'),
                 (2048, 'complained'), (4096, 'tried'), (8192, 'wrong')) AS k (bit, kind)
      ON r.fresh & k.bit <> 0
    GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (tenant_id, day, channel, provider, category, template, kind)
    DO UPDATE SET n = daily_counts.n + excluded.n
)
SELECT count(*) AS cancelled FROM moved
