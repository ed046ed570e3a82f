SELECT EXISTS (
        SELECT 1 FROM inbox i
        WHERE i.tenant_id = f.tenant_id AND i.user_id = f.user_id AND i.created_at <= f.asked_at)
    OR EXISTS (
        SELECT 1 FROM event_log e
        WHERE e.tenant_id = f.tenant_id AND e.user_id = f.user_id AND e.created_at <= f.asked_at)
    OR EXISTS (
        SELECT 1 FROM digests d
        WHERE d.tenant_id = f.tenant_id AND d.user_id = f.user_id AND d.opened_at <= f.asked_at)
FROM (SELECT :tenant::int4 AS tenant_id, :user_id::text AS user_id, :asked_at::timestamptz AS asked_at) f
