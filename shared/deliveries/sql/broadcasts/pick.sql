-- People in the order of their ids, and whether they are in the target: more than preferences is known of them, and
-- they have the attribute. The constants are one row that the planner folds in, so that it walks the key without a
-- sort.
SELECT p.user_id FROM (
    SELECT u.user_id, u.profile IS NOT NULL AND (f.name IS NULL OR (u.attributes -> f.name) = f.value) AS is_meant
    FROM (SELECT :tenant::int4 AS tenant_id, :after::text AS after, :name::text AS name, :value::jsonb AS value) f
    CROSS JOIN users u
    WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id LIMIT :window
) p WHERE p.is_meant ORDER BY p.user_id LIMIT :page
