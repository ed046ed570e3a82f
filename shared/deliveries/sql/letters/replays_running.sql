SELECT id, tenant_id, action, filter, actor, note, rate, matched, replayed, skipped, status, created_at, finished_at,
       extract(epoch FROM now() - created_at)::float8 AS seconds
FROM replays
WHERE status = 'running'
ORDER BY id LIMIT :limit
