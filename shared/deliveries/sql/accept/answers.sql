SELECT k.tenant_id, k.key_hash, k.request_hash, k.response
FROM unnest(:tenants::int4[], :key_hashes::bytea[]) AS asked(tenant_id, key_hash)
JOIN idempotency_keys k ON k.tenant_id = asked.tenant_id AND k.key_hash = asked.key_hash
