-- Removes cancelled deliveries from their line, so that they do not delay the others. The lines are locked first, as in
-- a release.
WITH over AS MATERIALIZED (
    SELECT k.delivery_id, k.line
    FROM (SELECT :tenant::int4 AS tenant_id, :first::uuid AS first, :last::uuid AS last) f
    JOIN parked k ON k.delivery_id >= f.first AND k.delivery_id <= f.last
    CROSS JOIN LATERAL (
        SELECT FROM deliveries d
        WHERE d.id = k.delivery_id AND d.tenant_id = f.tenant_id AND d.state = 'cancelled' OFFSET 0) d
), held AS MATERIALIZED (
    SELECT l.id FROM lines l WHERE l.id = ANY (ARRAY(SELECT line FROM over)) ORDER BY l.id FOR UPDATE
)
DELETE FROM parked
WHERE delivery_id = ANY (ARRAY(SELECT o.delivery_id FROM over o WHERE o.line IN (SELECT id FROM held)))
