SELECT t.slug AS tenant, r.days
FROM tenants t LEFT JOIN retention r ON r.tenant_id = t.id
ORDER BY t.id
