SELECT l.id, (SELECT t.slug FROM tenants t WHERE t.id = l.tenant_id) AS tenant, l.message_id, l.delivery_id, l.channel,
       l.origin, l.reason, l.detail, l.amqp_id, l.routing_key, l.body IS NOT NULL AS has_body, l.status, l.replay_id,
       l.created_at
FROM dead_letters l
WHERE l.id = :id AND (:tenant::int4 IS NULL OR l.tenant_id = :tenant)
