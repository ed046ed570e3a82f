-- Where a window ends.
SELECT m.id FROM (SELECT :tenant::int4 AS tenant_id, :low::uuid AS low, :high::uuid AS high) r CROSS JOIN messages m
WHERE m.id >= r.low AND m.id < r.high AND r.tenant_id IS NULL
ORDER BY m.id DESC OFFSET :skip LIMIT 1
