WITH given AS (
    SELECT :name::text AS name, :category::text AS category, :variables::text[] AS variables, :parts::text AS parts,
           :is_active::bool AS is_active, :id::uuid AS id, :tenant::int4 AS tenant_id, :version::int4 AS version
), changed AS (
    UPDATE templates t SET name = g.name, category = g.category, variables = g.variables, parts = g.parts::jsonb,
        is_active = g.is_active, version = t.version + 1, updated_at = clock_timestamp()
    FROM given g
    WHERE t.id = g.id AND t.tenant_id = g.tenant_id AND t.version = g.version
      AND NOT EXISTS (SELECT FROM templates o WHERE o.tenant_id = g.tenant_id AND o.name = g.name AND o.id <> g.id)
    RETURNING t.id, t.version, t.tenant_id, t.variables, t.parts
), kept AS (
    INSERT INTO template_versions (template_id, version, tenant_id, variables, parts)
    SELECT id, version, tenant_id, variables, parts FROM changed
)
SELECT count(*) FROM changed
