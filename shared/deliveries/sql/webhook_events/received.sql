WITH taken AS (
    UPDATE wa_inbound SET is_forwarded = true
    WHERE id = ANY (ARRAY(
            SELECT id FROM wa_inbound WHERE NOT is_forwarded ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED))
      AND NOT is_forwarded
    RETURNING id, tenant_id, created_at
), heard AS (
    -- One row for each configuration of the tenant that subscribes to the event. None is about a delivery.
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id
          FROM (
              SELECT tenant_id, 'whatsapp', NULL::uuid, 'message.received', created_at, id, NULL::int4, '{}'::jsonb
              FROM taken
          ) AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
)
SELECT count(*) FROM taken
