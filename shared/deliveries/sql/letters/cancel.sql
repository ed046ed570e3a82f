UPDATE replays r SET status = 'cancelled', finished_at = now()
FROM (SELECT :id::uuid AS id, :tenant::int4 AS tenant_id) asked
WHERE r.id = asked.id AND r.status = 'running' AND (asked.tenant_id IS NULL OR r.tenant_id = asked.tenant_id)
