SELECT k.id, k.tenant_id, t.slug AS tenant_slug, k.role
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.hash = :hash AND k.revoked_at IS NULL
