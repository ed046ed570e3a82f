WITH f AS (SELECT :tenant::int4 AS tenant_id, :user_id::text AS user_id, :asked_at::timestamptz AS asked_at
), devices_gone AS (
    DELETE FROM devices d USING f
    WHERE d.tenant_id = f.tenant_id AND d.user_id = f.user_id AND d.created_at <= f.asked_at RETURNING 1
), gone AS (
    DELETE FROM users u USING f
    WHERE u.tenant_id = f.tenant_id AND u.user_id = f.user_id AND u.created_at <= f.asked_at RETURNING 1)
SELECT (SELECT count(*) FROM devices_gone) + (SELECT count(*) FROM gone)
