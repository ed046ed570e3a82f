-- The hash of an address includes the tenant, so the suppressions need no tenant condition.
SELECT s.address_hash, s.scope, s.reason, NULL::int4 AS tenant_id, NULL::text AS user_id, NULL::text AS preferences,
       NULL::text AS time_zone, NULL::int2 AS quiet_start, NULL::int2 AS quiet_end
FROM suppressions s WHERE s.channel = :channel AND s.address_hash = ANY (:hashes::bytea[])
UNION ALL
SELECT NULL, NULL, NULL, u.tenant_id, u.user_id, u.preferences::text, u.time_zone, u.quiet_start, u.quiet_end
FROM unnest(:tenants::int4[], :users::text[]) AS asked(tenant_id, user_id)
JOIN users u ON u.tenant_id = asked.tenant_id AND u.user_id = asked.user_id
WHERE u.preferences IS NOT NULL OR u.quiet_start IS NOT NULL OR u.time_zone IS NOT NULL
