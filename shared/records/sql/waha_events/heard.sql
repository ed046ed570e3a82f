-- The time is not updated more often than is useful.
UPDATE wa_sessions SET last_event_at = now()
WHERE id = ANY (:sessions::uuid[]) AND (last_event_at < now() - interval '5 seconds') IS NOT FALSE
