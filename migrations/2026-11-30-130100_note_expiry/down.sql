ALTER TABLE deliveries DROP COLUMN expires_at;
DROP TABLE retention_cursor;
ALTER TABLE erasures DROP COLUMN failures, DROP COLUMN due_at;
