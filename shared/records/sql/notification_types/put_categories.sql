INSERT INTO categories AS c (tenant_id, name, label, class)
SELECT :tenant::int4, name, label, class
FROM unnest(:names::text[], :labels::text[], :classes::text[]) AS g(name, label, class)
ON CONFLICT (tenant_id, name) DO UPDATE SET
    label = coalesce(excluded.label, c.label), class = coalesce(excluded.class, c.class)
WHERE (c.label, c.class) IS DISTINCT FROM (coalesce(excluded.label, c.label), coalesce(excluded.class, c.class))
RETURNING name, (xmax = 0) AS is_new
