INSERT INTO rules (name, event_type, definition, is_active, id, tenant_id)
VALUES (:name, :event_type, :definition::text::jsonb, :is_active, :id, :tenant)
