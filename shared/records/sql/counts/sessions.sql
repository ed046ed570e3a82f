SELECT count(*) FROM wa_sessions WHERE tenant_id = :tenant
