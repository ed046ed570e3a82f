SELECT w.id, w.body FROM waha_events w WHERE w.tenant_id = :tenant AND w.id > :after ORDER BY w.id LIMIT :limit
