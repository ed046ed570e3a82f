UPDATE waha_events SET tries = tries - 1, due_at = now() + interval '1 second'
WHERE id = ANY (:ids::uuid[]) AND status = 'pending' AND tries > 0
