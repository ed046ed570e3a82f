-- The keys of a tenant, or of all, newest first.
SELECT k.id, t.slug AS tenant_slug, k.role, k.name, k.created_at, k.revoked_at
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE :tenant::int IS NULL OR k.tenant_id = :tenant
ORDER BY k.id DESC
