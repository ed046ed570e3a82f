ALTER TABLE erasures DROP COLUMN by_address;
