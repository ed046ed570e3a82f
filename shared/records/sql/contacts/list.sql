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
FROM (SELECT :tenant::int4 AS tenant_id, :at::timestamptz AS at, :id::text AS id, :locale::text AS locale,
             :time_zone::text AS time_zone, (:attributes::text[])::jsonb[] AS attributes) f
JOIN users u ON u.tenant_id = f.tenant_id
WHERE u.profile IS NOT NULL AND (u.created_at, u.user_id) < (f.at, f.id) AND (f.locale IS NULL OR u.locale = f.locale)
  AND (f.time_zone IS NULL OR u.time_zone = f.time_zone)
  AND (f.attributes IS NULL OR EXISTS (SELECT FROM unnest(f.attributes) a WHERE jsonb_contains(u.attributes, a)))
ORDER BY u.created_at DESC, u.user_id DESC LIMIT :limit
