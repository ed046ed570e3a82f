-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY inbox_tenant ON inbox (tenant_id, created_at);
