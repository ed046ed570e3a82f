SELECT id, name FROM wa_sessions WHERE tenant_id = :tenant
