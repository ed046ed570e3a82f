WITH asked AS (
    SELECT :replay::uuid AS replay_id
), letters AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id = ANY (:letters::uuid[]) AND status = 'open' ORDER BY id FOR UPDATE
), moved AS (
    UPDATE dead_letters l SET status = 'dropped', replay_id = asked.replay_id FROM asked, letters
    WHERE l.id = letters.id RETURNING 1
), noted AS (
    UPDATE replays r SET replayed = r.replayed + (SELECT count(*) FROM moved) FROM asked WHERE r.id = asked.replay_id
)
SELECT count(*) FROM moved
