-- Where expiry, erasures and retention stand, so that their loops ask an index and go on where they ended.
SET LOCAL lock_timeout = '5s';

-- When an erasure is next worked on, and how many turns in a row failed.
ALTER TABLE erasures ADD COLUMN due_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE erasures ADD COLUMN failures integer NOT NULL DEFAULT 0;
CREATE INDEX erasures_due ON erasures (due_at);

-- How far the removal of rows got; a scheduler goes on there.
CREATE TABLE retention_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position jsonb   NOT NULL
);

-- When a delivery that waits for a WhatsApp session is no longer worth sending; NULL: always worth it, or its message says so
-- alone (deliveries without a session, and those of the version before). The table in use comes last.
ALTER TABLE deliveries ADD COLUMN expires_at timestamptz;
