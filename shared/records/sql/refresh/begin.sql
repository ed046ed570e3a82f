WITH made AS (
    INSERT INTO token_families (id, tenant_id, key_id, hash, subject, role, ttl_s, expires_at)
    SELECT :id, k.tenant_id, k.id, :hash, :subject, :role, :ttl, now() + :holds
    FROM api_keys k WHERE k.id = :key AND k.revoked_at IS NULL
    RETURNING tenant_id)
SELECT t.slug FROM made m JOIN tenants t ON t.id = m.tenant_id
