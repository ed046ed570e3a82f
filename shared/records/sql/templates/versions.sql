SELECT version, variables, parts::text AS parts, created_at FROM template_versions
WHERE tenant_id = :tenant AND template_id = :template AND version < :before ORDER BY version DESC LIMIT :limit
