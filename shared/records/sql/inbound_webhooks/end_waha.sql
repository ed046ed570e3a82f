UPDATE waha_events SET status = CASE WHEN id = ANY (:done::uuid[]) THEN 'done' ELSE 'ignored' END
WHERE id = ANY (:ended::uuid[]) AND status = 'pending'
