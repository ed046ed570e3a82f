SELECT t.id AS tenant, t.slug,
       ((now() AT TIME ZONE 'UTC')::date - coalesce(r.days, f.days))::timestamp AT TIME ZONE 'UTC' AS before
FROM (SELECT :default_days::int4 AS days) f CROSS JOIN tenants t LEFT JOIN retention r ON r.tenant_id = t.id
WHERE coalesce(r.days, f.days) IS NOT NULL
ORDER BY t.id
