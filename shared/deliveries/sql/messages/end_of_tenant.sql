-- Where a window ends.
SELECT m.id FROM (SELECT :tenant::int4 AS tenant_id, :low::uuid AS low, :high::uuid AS high) r CROSS JOIN messages m
WHERE m.id >= r.low AND m.id < r.high AND (m.tenant_id, m.id) >= (r.tenant_id, r.low)
  AND (m.tenant_id, m.id) < (r.tenant_id, r.high)
ORDER BY m.tenant_id DESC, m.id DESC OFFSET :skip LIMIT 1
