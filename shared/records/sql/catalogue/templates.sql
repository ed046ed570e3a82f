SELECT name, version, category, variables, parts::text AS parts
FROM templates WHERE tenant_id = :tenant AND is_active ORDER BY id
