DELETE FROM lines WHERE id = ANY (ARRAY(
    SELECT id FROM lines
    WHERE kind = 'share' AND waiting = 0 AND released_at < now() - :idle_s::int4 * interval '1 second'
    LIMIT :limit FOR UPDATE SKIP LOCKED)) AND waiting = 0
