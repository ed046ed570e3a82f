INSERT INTO suppressions (id, tenant_id, channel, address_hash, address, scope, reason, detail, delivery_id)
SELECT id, tenant_id, channel, address_hash, address, scope, reason, detail, delivery_id
FROM unnest(:id::uuid[], :tenant::int4[], :channel::text[], :address_hash::bytea[], :known::bytea[], :address::text[],
            :scope::text[], :reason::text[], :detail::text[], :delivery::uuid[])
    AS n(id, tenant_id, channel, address_hash, known, address, scope, reason, detail, delivery_id)
-- `known` joins the fingerprints of an address under every key; each has 32 bytes.
WHERE NOT EXISTS (
    SELECT FROM generate_series(0, octet_length(n.known) / 32 - 1) i
    JOIN suppressions s ON s.address_hash = substr(n.known, i * 32 + 1, 32)
    WHERE s.tenant_id = n.tenant_id AND s.channel = n.channel AND s.scope = n.scope)
-- The rows come in the order of the unique key, so that two writers cannot deadlock.
ORDER BY address_hash, tenant_id, channel, scope
ON CONFLICT (address_hash, tenant_id, channel, scope) DO NOTHING
