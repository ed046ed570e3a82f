-- `variables` holds all variables of a template, one a line: PostgreSQL's arrays of arrays must be rectangular.
WITH put AS (
    INSERT INTO templates AS t (tenant_id, id, name, category, variables, parts)
    SELECT :tenant::int4, id, name, category, coalesce(string_to_array(nullif(variables, ''), chr(10)), '{}'),
           parts::jsonb
    FROM unnest(:ids::uuid[], :names::text[], :categories::text[], :variables::text[], :parts::text[])
        AS g(id, name, category, variables, parts)
    ON CONFLICT (tenant_id, name) DO UPDATE SET
        category = coalesce(excluded.category, t.category), variables = excluded.variables, parts = excluded.parts,
        is_active = true, version = t.version + 1, updated_at = clock_timestamp()
    WHERE (t.category, t.variables, t.parts, t.is_active) IS DISTINCT FROM
        (coalesce(excluded.category, t.category), excluded.variables, excluded.parts, true)
    RETURNING id, name, version, tenant_id, variables, parts, (xmax = 0) AS is_new
), kept AS (
    INSERT INTO template_versions (template_id, version, tenant_id, variables, parts)
    SELECT id, version, tenant_id, variables, parts FROM put
)
SELECT name, is_new FROM put
