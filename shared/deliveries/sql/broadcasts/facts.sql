SELECT u.user_id, u.profile IS NOT NULL AS is_known, u.locale, u.time_zone, u.attributes::text AS attributes
FROM (SELECT :tenant::int4 AS tenant_id, :after::text AS after) f CROSS JOIN users u
WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id LIMIT :window
