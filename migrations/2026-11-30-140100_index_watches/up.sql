-- The next watch is found without a walk over everything that is scheduled.
CREATE INDEX CONCURRENTLY due_watches ON due (due_at) WHERE why = 'watch';
