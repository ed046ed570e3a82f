DELETE FROM soft_bounces b
USING unnest(:tenants::int4[], :channels::text[], :hashes::bytea[]) AS a (tenant_id, channel, address_hash)
WHERE b.address_hash = a.address_hash AND b.tenant_id = a.tenant_id AND b.channel = a.channel
