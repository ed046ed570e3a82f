SELECT id, tenant_id, definition, total IS NOT NULL AS is_counted
FROM broadcasts WHERE status = 'running' AND id > :after ORDER BY id LIMIT :limit
