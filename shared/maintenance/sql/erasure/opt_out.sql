INSERT INTO suppressions (id, tenant_id, channel, address_hash, scope, reason)
SELECT n.id, f.tenant_id, n.channel, n.address_hash, f.scope, f.reason
FROM (SELECT :tenant::int4 AS tenant_id, :scope::text AS scope, :reason::text AS reason) f
CROSS JOIN unnest(:ids::uuid[], :channels::text[], :hashes::bytea[]) AS n(id, channel, address_hash)
ORDER BY n.address_hash
ON CONFLICT (address_hash, tenant_id, channel, scope) DO NOTHING
