-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY broadcast_pages_tenant ON broadcast_pages (tenant_id, created_at);
