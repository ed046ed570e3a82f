-- People in the order of their ids, and whether they are in the target, as in `pick.sql`.
SELECT count(*) FILTER (WHERE p.is_meant) AS meant, count(*) AS seen, max(p.user_id) AS last FROM (
    SELECT u.user_id, u.profile IS NOT NULL AND (f.name IS NULL OR (u.attributes -> f.name) = f.value) AS is_meant
    FROM (SELECT :tenant::int4 AS tenant_id, :after::text AS after, :name::text AS name, :value::jsonb AS value) f
    CROSS JOIN users u
    WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id LIMIT :window
) p
