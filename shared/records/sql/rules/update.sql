UPDATE rules r SET name = x.name, event_type = x.event_type, definition = x.definition::jsonb, is_active = x.is_active,
    updated_at = clock_timestamp()
FROM (SELECT :name::text AS name, :event_type::text AS event_type, :definition::text AS definition,
             :is_active::bool AS is_active) x
WHERE r.tenant_id = :tenant AND r.id = :id
