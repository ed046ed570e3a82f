-- A page of a configuration's events: how many, the moment of the last one, and those whose webhook waits.
WITH seen AS MATERIALIZED (
    SELECT w.id, w.at, w.carrier FROM webhook_events w
    WHERE w.configuration_id = :configuration AND w.at >= :from AND w.at > now() - interval '8 days'
    ORDER BY w.at LIMIT :limit
), waiting AS MATERIALIZED (
    SELECT s.id, s.carrier FROM seen s
    CROSS JOIN LATERAL (SELECT d.state FROM deliveries d WHERE d.id = s.carrier OFFSET 0) d
    WHERE d.state IN ('queued', 'retrying')
)
SELECT (SELECT count(*) FROM seen) AS seen, (SELECT max(at) FROM seen) AS last, ARRAY(SELECT id FROM waiting) AS events,
       ARRAY(SELECT carrier FROM waiting) AS carriers
