-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY event_log_age ON event_log (tenant_id, created_at);
