SELECT id, name, event_type, definition::text AS definition
FROM rules WHERE tenant_id = :tenant AND is_active ORDER BY id
