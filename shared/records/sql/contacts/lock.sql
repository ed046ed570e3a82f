SELECT u.user_id, u.profile, u.locale, u.time_zone, u.quiet_start, u.quiet_end, u.attributes::text AS attributes
FROM unnest(:ids::text[]) AS asked(user_id) JOIN users u ON u.tenant_id = :tenant AND u.user_id = asked.user_id
ORDER BY u.user_id FOR UPDATE OF u
