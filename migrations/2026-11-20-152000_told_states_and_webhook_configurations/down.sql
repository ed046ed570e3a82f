ALTER TABLE wa_inbound DROP COLUMN is_forwarded;
DROP TABLE webhook_configurations;
DROP INDEX wa_sessions_check;
ALTER TABLE wa_sessions DROP COLUMN told_at, DROP COLUMN hook_url, DROP COLUMN unreachable_since, DROP COLUMN needs_fetch;
