SELECT u.user_id FROM (SELECT :tenant::int4 AS tenant_id, :after::text AS after) f CROSS JOIN users u
WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id OFFSET :skipped LIMIT 1
