-- Sessions of the first tenant, which is the operator's own. Only they reach the WAHA of WAHA_BASE_URL past the address guard. The next
-- migration fills it.
SET LOCAL lock_timeout = '5s';
ALTER TABLE wa_sessions ADD COLUMN is_operators boolean NOT NULL DEFAULT false;
