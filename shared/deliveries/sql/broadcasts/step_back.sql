-- If the cursor is at the person, it moves to the person before.
UPDATE broadcasts b
SET after_user = coalesce((SELECT u.user_id FROM users u WHERE u.tenant_id = b.tenant_id AND u.user_id < b.after_user
                           ORDER BY u.user_id DESC LIMIT 1), '')
FROM (SELECT :tenant::int4 AS tenant_id, :user_id::text AS user_id) f
WHERE b.tenant_id = f.tenant_id AND b.after_user = f.user_id AND b.status IN ('scheduled', 'running', 'paused')
