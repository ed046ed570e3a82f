-- Sessions of the first tenant, which is the operator's own. Only they reach the WAHA of WAHA_BASE_URL past the address guard.
ALTER TABLE wa_sessions ADD COLUMN is_operators boolean NOT NULL DEFAULT false;
UPDATE wa_sessions SET is_operators = true WHERE tenant_id = (SELECT min(id) FROM tenants);
