-- `accept.sql` without the parts that plain batches do not have: a quarter of its cost.
WITH new_messages AS (
    INSERT INTO messages@ (id, tenant_id, user_id, category, priority, content, source, request_id, traceparent,
                           expires_at)
    SELECT * FROM unnest(
        :message_id::uuid[], :message_tenant::int4[], :message_user::text[], :message_category::text[],
        :message_priority::text[], :message_content::bytea[], :message_source::text[], :message_request::text[],
        :message_traceparent::text[], :message_expires_at::timestamptz[])
), fresh AS MATERIALIZED (
    SELECT * FROM unnest(
        :delivery_id::uuid[], :delivery_message::uuid[], :delivery_tenant::int4[], :delivery_channel::text[],
        :delivery_lane::text[], :delivery_recipient::text[], :delivery_recipient_hash::bytea[],
        :delivery_category::text[], :delivery_template::text[], :delivery_state::text[], :delivery_lease_ms::int4[])
        AS d(id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, lease_ms)
), new_deliveries AS (
    INSERT INTO deliveries@ (id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template,
                             state, run, attempts, lease_until)
    SELECT id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state,
           (lease_ms IS NOT NULL)::int, (lease_ms IS NOT NULL)::int,
           clock_timestamp() + lease_ms * interval '1 millisecond'
    FROM fresh
), new_outbox AS (
    -- Claims made at once have their own outbox row, which counts as published: they need no queue, and the audit
    -- checks them when their lease is over.
    INSERT INTO outbox (act_at, published_at, deliveries, runs, routes)
    SELECT now() + coalesce(max(lease_ms), :relay_after_ms) * interval '1 millisecond',
           CASE WHEN bool_and(lease_ms IS NOT NULL) THEN now() END,
           array_agg(id), array_agg(0), array_agg(channel || '.' || lane)
    FROM fresh GROUP BY lease_ms IS NULL
    RETURNING id, published_at
)
SELECT (SELECT id FROM new_outbox WHERE published_at IS NULL) AS outbox_id, '{}'::uuid[] AS won, now() AS accepted_at
