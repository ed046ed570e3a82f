WITH asked AS (
    SELECT :replay::uuid AS replay_id
), done AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id = ANY (:done::uuid[]) AND status = 'open'
        AND created_at <= (SELECT r.created_at FROM replays r JOIN asked ON r.id = asked.replay_id)
    ORDER BY id FOR UPDATE
), moved AS (
    UPDATE dead_letters l SET status = 'replayed', replay_id = asked.replay_id FROM asked, done
    WHERE l.id = done.id RETURNING 1
), skipped AS (
    UPDATE dead_letters l SET replay_id = asked.replay_id FROM asked
    WHERE l.id = ANY (:hopeless::uuid[]) AND l.status = 'open'
)
UPDATE replays r SET replayed = r.replayed + (SELECT count(*) FROM moved) FROM asked WHERE r.id = asked.replay_id
