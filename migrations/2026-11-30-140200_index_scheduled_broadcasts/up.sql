-- The next broadcast is found without a walk over all that are not finished.
CREATE INDEX CONCURRENTLY broadcasts_scheduled ON broadcasts (scheduled_at) WHERE status = 'scheduled';
