INSERT INTO broadcasts (id, tenant_id, definition, status, scheduled_at)
SELECT id, tenant_id, definition, CASE WHEN scheduled_at IS NULL THEN 'running' ELSE 'scheduled' END, scheduled_at
FROM unnest(:id::uuid[], :tenant::int4[], :definition::bytea[], :scheduled_at::timestamptz[])
    AS b(id, tenant_id, definition, scheduled_at)
