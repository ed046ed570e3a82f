SELECT id, definition, after_user FROM broadcasts
WHERE tenant_id = :tenant AND status IN ('scheduled', 'running', 'paused') ORDER BY id FOR UPDATE
