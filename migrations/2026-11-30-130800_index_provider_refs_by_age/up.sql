-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY provider_refs_tenant ON provider_refs (tenant_id, created_at);
