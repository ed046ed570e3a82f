WITH written AS (
    INSERT INTO dead_letters (id, tenant_id, channel, origin, reason, detail, amqp_id, routing_key, amqp_user, body)
    SELECT l.id, t.id, l.channel, l.origin, l.reason, l.detail, l.amqp_id, l.routing_key, l.amqp_user, l.body
    FROM unnest(:ids::uuid[], :tenants::text[], :channels::text[], :origins::text[], :reasons::text[],
                :details::text[], :amqp_ids::text[], :routing_keys::text[], :amqp_users::text[], :bodies::bytea[])
        AS l(id, tenant, channel, origin, reason, detail, amqp_id, routing_key, amqp_user, body)
    LEFT JOIN tenants t ON t.slug = l.tenant
    ON CONFLICT (id) DO UPDATE
    SET status = 'open', replay_id = NULL, created_at = now(), reason = excluded.reason, detail = excluded.detail
    WHERE dead_letters.status <> 'open'
       OR dead_letters.created_at <= (SELECT max(r.created_at) FROM replays r WHERE r.status = 'running')
    RETURNING id, tenant_id, channel, origin, reason
), heard AS (
    -- One event for each configuration of the tenant that subscribed to it.
    INSERT INTO webhook_events (tenant_id, configuration_id, event, at, subject, run, fact)
    SELECT x.tenant_id, x.configuration_id, x.event, x.at, x.subject, x.run, jsonb_strip_nulls(x.fact)
    FROM (SELECT f.*, c.id AS configuration_id
          FROM (SELECT tenant_id, channel, NULL::uuid, 'dead_letter.created', clock_timestamp(), id, NULL::int4,
                       jsonb_build_object('id', id, 'channel', channel, 'origin', origin, 'reason', reason)
                FROM written WHERE tenant_id IS NOT NULL)
              AS f (tenant_id, channel, delivery, event, at, subject, run, fact)
          JOIN webhook_configurations c ON c.tenant_id = f.tenant_id
              AND (f.event = ANY (c.events) OR (c.events IS NULL AND f.event <> 'message.retrying'))
          OFFSET 0) x
    WHERE x.configuration_id IS DISTINCT FROM x.subject
)
SELECT id FROM written
