ALTER TABLE parked DROP COLUMN expires_at;
