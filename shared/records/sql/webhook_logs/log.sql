WITH l AS MATERIALIZED (
    SELECT *
    FROM unnest(:ids::uuid[], :tenants::int4[], :configurations::uuid[], :events::text[], :deliveries::uuid[],
                :attempts::int4[], :statuses::int4[], :requests::bytea[], :responses::bytea[], :durations_ms::int4[],
                :at::timestamptz[], :taken::bool[])
        AS l (id, tenant_id, configuration_id, event, delivery_id, attempt, response_status, request, response,
              duration_ms, created_at, taken)
), written AS (
    -- A configuration that was removed meanwhile has no log.
    INSERT INTO webhook_logs (id, tenant_id, configuration_id, event, delivery_id, attempt, response_status, request,
                              response, duration_ms, created_at)
    SELECT l.id, l.tenant_id, l.configuration_id, event, delivery_id, attempt, response_status, request, response,
           duration_ms, l.created_at
    FROM l JOIN webhook_configurations c ON c.id = l.configuration_id
    ON CONFLICT DO NOTHING
), seen AS (
    SELECT configuration_id, bool_or(taken) AS taken, coalesce(bool_or(response_status = 410), false) AS gone,
           min(created_at) AS since
    FROM l GROUP BY configuration_id ORDER BY configuration_id
), judged AS (
    UPDATE webhook_configurations c
    SET failing_since = CASE WHEN s.taken THEN NULL ELSE coalesce(c.failing_since, s.since) END,
        is_active = NOT (s.gone OR v.failing), disabled_at = CASE WHEN s.gone OR v.failing THEN now() END,
        disabled_why = CASE WHEN s.gone THEN 'gone' WHEN v.failing THEN 'failing' END,
        swept_at = NULL
    FROM seen s JOIN webhook_configurations o ON o.id = s.configuration_id
    CROSS JOIN LATERAL (
        SELECT coalesce(NOT s.taken AND o.failing_since < now() - :disable_after_ms::int8 * interval '1 millisecond',
                        false) AS failing) v
    -- Only rows that change are updated.
    WHERE c.id = s.configuration_id AND c.is_active
      AND (s.gone OR v.failing OR s.taken = (c.failing_since IS NOT NULL))
    RETURNING c.id, c.tenant_id, c.name, c.url, c.is_active, c.disabled_why
), heard AS (
    -- One row for each other configuration of the tenant that subscribes to the event. None is about a delivery.
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id
          FROM (
              SELECT tenant_id, NULL::text, NULL::uuid, 'endpoint.disabled', clock_timestamp(), id, NULL::int4,
                     jsonb_build_object('configuration_id', id, 'name', name, 'url', url, 'reason', disabled_why)
              FROM judged WHERE NOT is_active
          ) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
)
SELECT id, disabled_why AS why FROM judged WHERE NOT is_active
