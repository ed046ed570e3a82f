-- Whether an erasure also takes what only an address of the person leads to. An older version does not say, and means yes.
SET LOCAL lock_timeout = '5s';
ALTER TABLE erasures ADD COLUMN by_address boolean NOT NULL DEFAULT true;
