DELETE FROM digests WHERE id IN (
    SELECT id FROM digests WHERE state = 'closed' AND closes_at < now() - :days::int4 * interval '1 day'
    LIMIT :limit FOR UPDATE SKIP LOCKED)
