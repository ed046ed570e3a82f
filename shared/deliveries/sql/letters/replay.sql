SELECT id, tenant_id, action, filter, actor, note, rate, matched, replayed, skipped, status, created_at, finished_at
FROM replays
WHERE id = :id AND (:tenant::int4 IS NULL OR tenant_id = :tenant)
