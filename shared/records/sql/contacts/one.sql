SELECT u.user_id, u.profile, u.locale, u.time_zone, u.quiet_start, u.quiet_end, u.attributes::text AS attributes,
       ARRAY(SELECT d.token FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id
             ORDER BY d.id) AS tokens,
       ARRAY(SELECT d.platform FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id
             ORDER BY d.id) AS platforms,
       u.created_at, u.updated_at,
       ARRAY(SELECT d.id FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id
             ORDER BY d.id) AS device_ids,
       ARRAY(SELECT d.created_at FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id
             ORDER BY d.id) AS device_times
FROM users u WHERE u.tenant_id = :tenant AND u.user_id = :user_id AND u.profile IS NOT NULL
