-- Likewise whether a broadcast runs.
CREATE INDEX CONCURRENTLY broadcasts_running ON broadcasts (id) WHERE status = 'running';
