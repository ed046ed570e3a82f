UPDATE wa_sessions SET is_operators = true
WHERE tenant_id = (SELECT min(id) FROM tenants) AND NOT is_operators
