-- `moved` checks run and state, so applying an event twice changes nothing.
--
-- * A real outcome that arrives after its worker counted as dead still wins while no later run has started. A crash
--   report never overrides an outcome, not even one that is stored because this version cannot read it.
-- * If the outcome comes after the crash report, `told` removes the supposed attempt from the log: there was one call,
--   so there is one attempt. Only a delivery that has crashed, or was not moved, can have such a row.
-- * If reports arrive together, the one wins that would win if they arrived one after the other: a message that
--   arrived cannot have failed, but can bounce.
-- * `bits` are the kinds that are logged with the move, if they are known before; `touched` are the kinds that are
--   logged for deliveries that were not moved. The statement returns the events that moved a delivery, and later
--   reports of a provider unless something better was known.
-- * A delivery that is held until a time waits for exactly that time, and counts as neither tried nor deferred. One
--   that found no provider to call has waited since the first time that it found none.
-- * `referenced` are the providers whose references are stored.
WITH e AS MATERIALIZED (
    SELECT * FROM unnest(:deliveries::uuid[], :runs::int4[], :kinds::text[], :tenants::int4[], :channels::text[],
                         :times::timestamptz[], :providers::text[], :outcomes::text[], :codes::text[], :details::text[],
                         :durations_ms::int4[], :provider_refs::text[], :states::text[], :delays_ms::int8[],
                         :reasons::text[], :dead::text[], :letters::uuid[], :spent::bool[], :crashes::bool[],
                         :reports::bool[], :rounds::int4[])
        AS e(delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref,
             state, delay_ms, reason, dead, letter_id, spent, crash, report, round)
), moved AS (
    UPDATE deliveries@ d
    SET state = e.state, reason = e.reason, provider = coalesce(e.provider, d.provider), lease_until = NULL,
        updated_at = clock_timestamp(), attempts = d.attempts - (NOT e.spent)::int,
        deferrals = d.deferrals + (NOT e.spent AND e.provider IS NOT NULL)::int,
        crashes = d.crashes + e.crash::int, round = e.round,
        waiting_since = CASE WHEN e.state = 'retrying' AND e.provider IS NULL THEN coalesce(d.waiting_since, e.at) END,
        reached = d.reached | e.bits, fresh = e.bits & ~d.reached
    FROM (SELECT DISTINCT ON (delivery_id, run) *,
              reached_bits(kind)
              | bit_or(CASE WHEN provider IS NOT NULL AND NOT crash THEN reached_bits(kind) ELSE 0::smallint END)
                  OVER (PARTITION BY delivery_id)
              | bit_or(CASE WHEN report THEN reached_bits(kind) ELSE 0::smallint END)
                  OVER (PARTITION BY delivery_id, run) AS bits
          FROM e
          ORDER BY delivery_id, run, crash, state = 'sent', report AND state = 'failed', state = 'delivered') e
    WHERE d.id = e.delivery_id AND d.run = e.run
      AND ((d.state = 'sending'
            AND NOT (e.crash AND EXISTS (
                SELECT FROM unread_events u WHERE u.delivery_id = e.delivery_id AND u.run = e.run)))
           OR (d.state IN ('queued', 'retrying') AND NOT e.crash AND e.delay_ms IS NULL)
           OR (e.report AND e.state <> 'sent'
               AND (d.state = 'sent' OR (d.state = 'delivered' AND e.state = 'bounced'))))
    RETURNING d.id, d.run, d.crashes, d.message_id, d.tenant_id, d.channel, d.state, e.kind, e.delay_ms, e.dead,
              e.letter_id, e.detail, e.at, e.provider, e.code, d.provider AS carrier, d.category, d.template, d.fresh
), logged AS (
    INSERT INTO delivery_events@ (delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail,
                                  duration_ms, provider_ref)
    SELECT delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref
    FROM e
    WHERE (provider IS NOT NULL AND NOT crash) OR (delivery_id, run, kind) IN (SELECT id, run, kind FROM moved)
       OR (report AND EXISTS (SELECT 1 FROM deliveries@ d WHERE d.id = e.delivery_id AND d.run = e.run))
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, run, tenant_id, channel, kind, at, provider, code, detail
), touched AS (
    UPDATE deliveries@ d SET reached = d.reached | l.bits, fresh = l.bits & ~d.reached
    FROM (SELECT delivery_id, bit_or(reached_bits(kind)) AS bits FROM logged
          WHERE delivery_id NOT IN (SELECT id FROM moved) GROUP BY 1 ORDER BY 1) l
    WHERE d.id = l.delivery_id AND l.bits & ~d.reached <> 0
    RETURNING d.id, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), named AS (
    INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
    SELECT provider, provider_ref, delivery_id, tenant_id FROM e
    WHERE provider_ref IS NOT NULL AND outcome = 'sent' AND provider = ANY (:referenced::text[])
    ON CONFLICT DO NOTHING
), told AS (
    UPDATE delivery_events@ x SET provider = NULL, outcome = NULL, duration_ms = NULL
    FROM (SELECT * FROM e WHERE provider IS NOT NULL AND NOT crash AND kind <> 'ambiguous'
          AND delivery_id NOT IN (SELECT id FROM moved WHERE crashes = 0)) e
    WHERE x.delivery_id = e.delivery_id AND x.run = e.run AND x.kind = 'ambiguous' AND x.code = :worker_lost
), daily AS (
    -- Adds to the counts what the updates have added to deliveries. Rows are taken in one order, so that two writers
    -- never wait for each other in a circle.
    INSERT INTO daily_counts (day, tenant_id, channel, provider, category, template, kind, n)
    SELECT r.day, r.tenant_id, r.channel, r.provider, r.category, r.template, k.kind, sum(r.n)
    FROM (SELECT uuid7_day(f.id) AS day, f.tenant_id, f.channel, coalesce(f.provider, '') AS provider,
                 coalesce(f.category, '') AS category, coalesce(f.template, '') AS template, f.fresh, count(*) AS n
          FROM (SELECT id, tenant_id, channel, carrier, category, template, fresh FROM moved
                UNION ALL SELECT id, tenant_id, channel, provider, category, template, fresh FROM touched)
              AS f (id, tenant_id, channel, provider, category, template, fresh)
          WHERE f.fresh <> 0 GROUP BY 1, 2, 3, 4, 5, 6, 7) r
    JOIN (VALUES (1, 'sent'), (2, 'delivered'), (4, 'failed'), (8, 'bounced'), (16, 'dead'), (32, 'suppressed'),
                 (64, 'expired'), (128, 'cancelled'), (256, 'read'), (512, 'opened'), (1024, 'clicked'),
                 (2048, 'complained'), (4096, 'tried'), (8192, 'wrong')) AS k (bit, kind)
      ON r.fresh & k.bit <> 0
    GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (tenant_id, day, channel, provider, category, template, kind)
    DO UPDATE SET n = daily_counts.n + excluded.n
), waiting AS (
    INSERT INTO due (delivery_id, due_at, run, why)
    SELECT id, CASE state WHEN 'scheduled' THEN at ELSE clock_timestamp() END + delay_ms * interval '1 millisecond',
           run, CASE state WHEN 'scheduled' THEN state ELSE 'retry' END
    FROM moved WHERE delay_ms IS NOT NULL
    ON CONFLICT (delivery_id) DO UPDATE SET due_at = excluded.due_at, run = excluded.run, why = excluded.why
), letters AS (
    INSERT INTO dead_letters (id, tenant_id, message_id, delivery_id, channel, origin, reason, detail)
    SELECT letter_id, tenant_id, message_id, id, channel, CASE dead WHEN 'poison' THEN 'broker' ELSE 'delivery' END,
           dead, coalesce(detail, '')
    FROM moved WHERE dead IS NOT NULL
    RETURNING id, tenant_id, message_id, delivery_id, channel, origin, reason
), heard AS (
    -- One event for each configuration of the tenant that subscribed to it. A configuration gets no events about its
    -- own deliveries, and deliveries that carry events produce none; `OFFSET 0` is an optimisation fence that skips
    -- this check where there is no configuration.
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id
          FROM (SELECT l.tenant_id, l.channel, l.delivery_id, 'message.' || l.kind, l.at, l.delivery_id, l.run,
                       jsonb_build_object('delivery_id', l.delivery_id, 'channel', l.channel, 'status', l.kind,
                                          'provider', l.provider, 'code', l.code, 'detail', l.detail)
                FROM logged l
                WHERE l.kind <> 'ambiguous'
                  AND (l.kind = ANY (:webhooks_always::text[])
                       OR (l.delivery_id, l.run, l.kind) IN (SELECT id, run, kind FROM moved))
                UNION ALL
                SELECT tenant_id, channel, id, 'message.' || state, at, id, run,
                       jsonb_build_object('delivery_id', id, 'channel', channel, 'status', state, 'provider', provider,
                                          'code', code, 'detail', detail)
                FROM moved WHERE kind = 'ambiguous'
                UNION ALL
                SELECT tenant_id, channel, delivery_id, 'dead_letter.created', clock_timestamp(), id, NULL,
                       jsonb_build_object('id', id, 'message_id', message_id, 'delivery_id', delivery_id,
                                          'channel', channel, 'origin', origin, 'reason', reason)
                FROM letters) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
      AND NOT (x.channel = 'webhook' AND EXISTS (
          SELECT 1 FROM deliveries@ d JOIN messages@ m ON m.id = d.message_id
          WHERE d.id = x.delivery AND m.source = 'event'))
)
SELECT 'written' AS what, kind AS word, count(*) AS n FROM logged GROUP BY 2
UNION ALL
SELECT 'retry', channel, count(*) FROM moved WHERE delay_ms IS NOT NULL AND state <> 'scheduled' GROUP BY 2
UNION ALL
SELECT 'dead', dead, count(*) FROM moved WHERE dead IS NOT NULL GROUP BY 2
