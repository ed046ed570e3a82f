WITH f AS (
    SELECT :tenant::int4 AS tenant_id, :configuration::uuid AS configuration_id, :since::timestamptz AS since,
           :until::timestamptz AS until, :status::text AS status, :ids::uuid[] AS ids
), picked AS MATERIALIZED (
    SELECT w.id, w.carrier, d.state FROM f JOIN webhook_events w ON w.configuration_id = f.configuration_id
    LEFT JOIN LATERAL (SELECT d.state FROM deliveries d WHERE d.id = w.carrier OFFSET 0) d ON true
    WHERE w.tenant_id = f.tenant_id AND w.at >= f.since AND w.at <= f.until AND NOT w.pending
      AND (f.ids IS NULL OR w.carrier = ANY (f.ids))
      AND (f.status IS NULL OR f.status = CASE WHEN w.carrier IS NULL THEN 'held' ELSE d.state END)
      AND coalesce(d.state NOT IN ('scheduled', 'queued', 'sending'), true)
    ORDER BY w.at, w.id LIMIT :limit
), hurried AS (
    UPDATE due SET due_at = now()
    WHERE delivery_id = ANY (ARRAY(SELECT carrier FROM picked WHERE state = 'retrying')) AND why = 'retry'
), again AS (
    UPDATE webhook_events w SET pending = true, round = w.round + 1
    FROM picked p WHERE w.id = p.id AND NOT w.pending AND p.state IS DISTINCT FROM 'retrying'
)
SELECT count(*) FROM picked
