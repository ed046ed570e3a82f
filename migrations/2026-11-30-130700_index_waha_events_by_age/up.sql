-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY waha_events_tenant ON waha_events (tenant_id, created_at);
