WITH made AS (
    INSERT INTO templates (name, category, variables, parts, is_active, id, tenant_id)
    VALUES (:name, :category, :variables, :parts::text::jsonb, :is_active, :id, :tenant)
    ON CONFLICT DO NOTHING RETURNING id, version, tenant_id, variables, parts
), kept AS (
    INSERT INTO template_versions (template_id, version, tenant_id, variables, parts)
    SELECT id, version, tenant_id, variables, parts FROM made
)
SELECT count(*) FROM made
