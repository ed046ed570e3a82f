-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY bulks_tenant ON bulks (tenant_id, created_at);
