-- Webhook events about deliveries, or about messages from the person, and the log of their calls.
WITH f AS (SELECT :tenant::int4 AS tenant_id, :subjects::uuid[] AS subjects, :blank::bytea AS blank
), gone AS (
    DELETE FROM webhook_events w USING f
    WHERE w.tenant_id = f.tenant_id AND w.subject = ANY (f.subjects) AND NOT w.pending RETURNING w.carrier
), carriers AS MATERIALIZED (
    SELECT d.id, d.message_id FROM gone g
    CROSS JOIN LATERAL (SELECT d.id, d.message_id, d.state FROM deliveries d WHERE d.id = g.carrier OFFSET 0) d
    WHERE d.state NOT IN ('scheduled', 'queued', 'sending', 'retrying')
), emptied AS (UPDATE messages m SET content = f.blank FROM carriers c CROSS JOIN f WHERE m.id = c.message_id
)
DELETE FROM webhook_logs l USING f
WHERE l.tenant_id = f.tenant_id AND (l.delivery_id = ANY (f.subjects) OR l.delivery_id IN (SELECT id FROM carriers))
