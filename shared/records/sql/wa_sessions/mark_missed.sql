WITH missed AS (
    UPDATE wa_sessions SET needs_fetch = true, checked_at = NULL
    WHERE is_wanted AND fetched_until < now() - interval '5 seconds'
)
SELECT count(*) FROM wa_sessions
