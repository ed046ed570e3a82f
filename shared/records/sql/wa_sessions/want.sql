UPDATE wa_sessions
SET is_wanted = :is_wanted, checked_at = NULL, fetched_until = coalesce(fetched_until, now()), updated_at = now()
WHERE id = :id
