DROP TABLE webhook_events, webhook_logs;
DROP INDEX webhook_configurations_updated, webhook_configurations_off;
ALTER TABLE webhook_configurations DROP COLUMN failing_since, DROP COLUMN disabled_at, DROP COLUMN disabled_why, DROP COLUMN swept_at;
