-- This list differs from the one of all tenants only in the condition on the tenant: each walks an index of its own.
SELECT e.id, e.at, t.slug AS tenant, e.actor, e.action, e.target, e.request_id
FROM audit_entries e LEFT JOIN tenants t ON t.id = e.tenant_id
WHERE e.tenant_id = :tenant AND e.id < :before AND e.actor = coalesce(:actor, e.actor)
    AND starts_with(e.action, coalesce(:action, ''))
    AND e.at >= coalesce(:since::timestamptz, '-infinity') AND e.at < coalesce(:until::timestamptz, 'infinity')
ORDER BY e.id DESC LIMIT :limit
