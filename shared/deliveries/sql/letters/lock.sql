SELECT 1 FROM replays WHERE id = :replay AND status = 'running' FOR UPDATE SKIP LOCKED
