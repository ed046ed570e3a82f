SELECT id, name, version, category, variables, parts::text AS parts, is_active, created_at, updated_at
FROM templates WHERE tenant_id = :tenant AND id < :before ORDER BY id DESC LIMIT :limit
