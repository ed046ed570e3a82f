SELECT id, tenant_id, name, url, events, headers, secret, previous_secret, previous_until, is_active, created_at,
       updated_at, disabled_at, disabled_why
FROM webhook_configurations
WHERE tenant_id = :tenant AND id = :id
