-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY broadcasts_age ON broadcasts (tenant_id, created_at);
