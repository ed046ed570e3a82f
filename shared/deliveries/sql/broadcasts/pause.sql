UPDATE broadcasts SET status = 'paused', updated_at = now()
WHERE tenant_id = :tenant AND id = :id AND status IN ('scheduled', 'running')
