UPDATE dead_letters l SET replay_id = asked.id
FROM (SELECT :replay::uuid AS id) asked
WHERE l.id = ANY (:letters::uuid[]) AND l.status = 'open'
