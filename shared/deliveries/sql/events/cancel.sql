-- Cancels those of the given deliveries that still wait, with their log rows and counts.
WITH moved AS (
    UPDATE deliveries d SET state = 'cancelled', lease_until = NULL, updated_at = clock_timestamp(),
        reached = d.reached | reached_bits('cancelled'), fresh = reached_bits('cancelled') & ~d.reached
    FROM unnest(:ids::uuid[]) AS asked (id)
    WHERE d.id = asked.id AND d.state IN ('scheduled', 'queued', 'retrying')
    RETURNING d.id, d.run, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), gone AS (
    -- Due rows that a release is taking now are left to it: it drops deliveries that no longer wait. Waiting for its
    -- lock while holding the delivery's could deadlock.
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id FROM due WHERE delivery_id = ANY (ARRAY(SELECT id FROM moved)) FOR UPDATE SKIP LOCKED))
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at, detail)
    SELECT id, run, 'cancelled', tenant_id, channel, clock_timestamp(), :detail::text FROM moved
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, run, tenant_id, channel, kind, at, detail
), heard AS (
    -- One event for each configuration of the tenant that subscribed to it. A configuration gets no events about its
    -- own deliveries, and deliveries that carry events produce none; `OFFSET 0` is an optimisation fence that skips
    -- this check where there is no configuration.
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id
          FROM (SELECT tenant_id, channel, delivery_id, 'message.cancelled', at, delivery_id, run,
                       jsonb_build_object('delivery_id', delivery_id, 'channel', channel, 'status', kind,
                                          'detail', detail)
                FROM logged) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
      AND NOT (x.channel = 'webhook' AND EXISTS (
          SELECT 1 FROM deliveries d JOIN messages m ON m.id = d.message_id
          WHERE d.id = x.delivery AND m.source = 'event'))
), daily AS (
    -- Adds the kinds that the update has added to deliveries to the counts. Rows are taken in one order, so that two
    -- writers never wait for each other in a circle.
    INSERT INTO daily_counts (day, tenant_id, channel, provider, category, template, kind, n)
    SELECT uuid7_day(id), tenant_id, channel, coalesce(provider, ''), coalesce(category, ''), coalesce(template, ''),
           'cancelled', count(*)
    FROM moved WHERE fresh <> 0
    GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
    ON CONFLICT (tenant_id, day, channel, provider, category, template, kind)
    DO UPDATE SET n = daily_counts.n + excluded.n
)
SELECT id FROM moved
