SELECT u.user_id, u.profile, u.locale, u.time_zone, u.quiet_start, u.quiet_end, u.attributes::text AS attributes,
       ARRAY(SELECT d.token FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id
             ORDER BY d.id) AS tokens,
       ARRAY(SELECT d.platform FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id
             ORDER BY d.id) AS platforms
FROM unnest(:ids::text[]) AS asked(user_id) JOIN users u ON u.tenant_id = :tenant AND u.user_id = asked.user_id
