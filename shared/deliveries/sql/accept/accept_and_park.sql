-- As `accept.sql`, for deliveries that wait in a line.
WITH won AS (
    INSERT INTO idempotency_keys (tenant_id, key_hash, request_hash, subject, response)
    SELECT * FROM unnest(:key_tenant::int4[], :key_hash::bytea[], :key_request_hash::bytea[], :key_subject::uuid[],
                         :key_response::bytea[])
    ON CONFLICT DO NOTHING RETURNING subject
), won_ids AS MATERIALIZED (SELECT coalesce(array_agg(subject), '{}') AS ids FROM won
), new_bulks AS (
    INSERT INTO bulks (id, tenant_id, content, refused)
    SELECT id, tenant_id, content, refused
    FROM unnest(:bulk_id::uuid[], :bulk_tenant::int4[], :bulk_content::bytea[], :bulk_refused::int4[],
                :bulk_keyed_subject::uuid[]) AS b(id, tenant_id, content, refused, keyed_subject)
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
    ON CONFLICT DO NOTHING
), new_messages AS (
    INSERT INTO messages@ (id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id,
                           traceparent, scheduled_at, expires_at)
    SELECT id, tenant_id, bulk_id, user_id, category, priority, content, source, request_id, traceparent, scheduled_at,
           expires_at
    FROM unnest(
        :message_id::uuid[], :message_tenant::int4[], :message_user::text[], :message_category::text[],
        :message_priority::text[], :message_content::bytea[], :message_source::text[], :message_request::text[],
        :message_traceparent::text[], :message_expires_at::timestamptz[], :message_keyed_subject::uuid[],
        :message_bulk::uuid[], :message_scheduled_at::timestamptz[])
        AS m(id, tenant_id, user_id, category, priority, content, source, request_id, traceparent, expires_at,
             keyed_subject, bulk_id, scheduled_at)
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
), fresh AS MATERIALIZED (
    SELECT * FROM unnest(
        :delivery_id::uuid[], :delivery_message::uuid[], :delivery_tenant::int4[], :delivery_channel::text[],
        :delivery_lane::text[], :delivery_recipient::text[], :delivery_recipient_hash::bytea[],
        :delivery_category::text[], :delivery_template::text[], :delivery_state::text[], :delivery_lease_ms::int4[],
        :delivery_keyed_subject::uuid[], :delivery_due_at::timestamptz[], :delivery_line::uuid[],
        :delivery_rank::int2[], :delivery_park::uuid[], :delivery_kind::text[], :delivery_country::text[],
        :delivery_expires_at::timestamptz[])
        AS d(id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state, lease_ms,
             keyed_subject, due_at, line, rank, park, kind, country, expires_at)
    WHERE keyed_subject IS NULL OR keyed_subject = ANY ((SELECT ids FROM won_ids)::uuid[])
), new_deliveries AS (
    INSERT INTO deliveries@ (id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template,
                             state, run, attempts, lease_until, line, rank, kind, country, expires_at)
    SELECT id, message_id, tenant_id, channel, lane, recipient, recipient_hash, category, template, state,
           (lease_ms IS NOT NULL)::int, (lease_ms IS NOT NULL)::int,
           clock_timestamp() + lease_ms * interval '1 millisecond', line, rank, kind, country, expires_at
    FROM fresh
), new_due AS (
    INSERT INTO due (delivery_id, due_at, run, why)
    SELECT id, due_at, 0, 'scheduled' FROM fresh WHERE due_at IS NOT NULL
), new_shares AS (
    -- A session's line already exists; a tenant's share is created when it is first needed.
    INSERT INTO lines (id, tenant_id, kind, route)
    SELECT DISTINCT park, tenant_id, 'share', channel || '.' || lane
    FROM fresh WHERE park IS NOT NULL AND line IS NULL ORDER BY 1
    ON CONFLICT DO NOTHING
), new_parked AS (
    INSERT INTO parked (delivery_id, line, run, rank, expires_at)
    SELECT id, park, 0, rank, expires_at FROM fresh WHERE park IS NOT NULL AND due_at IS NULL
), new_outbox AS (
    -- Claims made at once have their own outbox row, which counts as published: they need no queue, and the audit
    -- checks them when their lease is over.
    INSERT INTO outbox (act_at, published_at, deliveries, runs, routes)
    SELECT now() + coalesce(max(lease_ms), :relay_after_ms) * interval '1 millisecond',
           CASE WHEN bool_and(lease_ms IS NOT NULL) THEN now() END,
           array_agg(id), array_agg(0), array_agg(channel || '.' || lane)
    FROM fresh WHERE due_at IS NULL AND park IS NULL GROUP BY lease_ms IS NULL
    RETURNING id, published_at
)
SELECT (SELECT id FROM new_outbox WHERE published_at IS NULL) AS outbox_id, (SELECT ids FROM won_ids) AS won,
       now() AS accepted_at
