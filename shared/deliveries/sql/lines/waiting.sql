-- The index of waiting deliveries leads from one non-empty line to the next, so empty lines are not read.
WITH RECURSIVE w(line) AS (
    (SELECT line FROM parked ORDER BY line LIMIT 1)
    UNION ALL
    SELECT (SELECT p.line FROM parked p WHERE p.line > w.line ORDER BY p.line LIMIT 1) FROM w WHERE w.line IS NOT NULL)
SELECT coalesce(sum(l.waiting), 0)::int8 AS deliveries, count(*) AS lines FROM w JOIN lines l ON l.id = w.line
