UPDATE broadcasts SET status = CASE WHEN scheduled_at > now() THEN 'scheduled' ELSE 'running' END, updated_at = now()
WHERE tenant_id = :tenant AND id = :id AND status = 'paused'
