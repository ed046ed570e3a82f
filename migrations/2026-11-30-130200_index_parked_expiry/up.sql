-- What expires while it waits, soonest first.
CREATE INDEX CONCURRENTLY parked_expires ON parked (expires_at) WHERE expires_at IS NOT NULL;
