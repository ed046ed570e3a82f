-- Retention asks for the old rows of one tenant.
CREATE INDEX CONCURRENTLY wa_inbound_age ON wa_inbound (tenant_id, created_at);
