SELECT id, name, event_type, definition::text AS definition, is_active, created_at, updated_at
FROM rules WHERE tenant_id = :tenant AND id = :id
