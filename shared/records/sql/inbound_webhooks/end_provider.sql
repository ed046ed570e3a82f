-- The body contains addresses and is not needed any more, so it is emptied.
UPDATE provider_events SET status = CASE WHEN id = ANY (:done::uuid[]) THEN 'done' ELSE 'ignored' END, body = ''::bytea
WHERE id = ANY (:ended::uuid[]) AND status = 'pending'
