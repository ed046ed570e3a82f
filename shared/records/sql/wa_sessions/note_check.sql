UPDATE wa_sessions
SET unreachable_since = CASE WHEN :is_reachable THEN NULL ELSE coalesce(unreachable_since, now()) END,
    -- A request for another check during this one sets `checked_at` to NULL, and that request stays.
    needs_fetch = :needs_fetch OR (needs_fetch AND checked_at IS NULL),
    -- While webhooks arrive, their messages are known; WAHA repeats a webhook for some minutes.
    fetched_until = greatest(fetched_until, :fetched_until::timestamptz,
        CASE WHEN NOT :needs_fetch AND NOT needs_fetch THEN last_event_at - interval '5 minutes' END)
WHERE id = :id
