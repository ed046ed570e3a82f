-- The same for a delivery that waits in a line. A migration of its own: some statements lock the two tables in one order, some in the
-- other. The migration before did this too for a while, so the column may stand.
SET LOCAL lock_timeout = '5s';
ALTER TABLE parked ADD COLUMN IF NOT EXISTS expires_at timestamptz;
