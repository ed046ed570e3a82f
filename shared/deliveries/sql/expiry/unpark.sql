WITH gone AS (
    SELECT id, run FROM unnest(:ids::uuid[], :runs::int4[]) AS u(id, run)
), held AS MATERIALIZED (
    -- Lines are locked before the deliveries parked in them, as in a release.
    SELECT l.id FROM lines l
    WHERE l.id IN (SELECT p.line FROM gone JOIN parked p ON p.delivery_id = gone.id AND p.run = gone.run)
    ORDER BY l.id FOR UPDATE
)
DELETE FROM parked p USING gone
WHERE p.delivery_id = gone.id AND p.run = gone.run AND (SELECT count(*) FROM held) >= 0
