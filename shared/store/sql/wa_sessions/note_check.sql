UPDATE wa_sessions
SET unreachable_since = CASE WHEN :is_reachable THEN NULL ELSE coalesce(unreachable_since, now()) END,
    -- Whoever asks for another check while this one is under way sets `checked_at` to NULL: that request stays.
    needs_fetch = :needs_fetch OR (needs_fetch AND checked_at IS NULL),
    -- While webhooks arrive, what they tell is known; WAHA repeats one for some minutes.
    fetched_until = greatest(fetched_until, :fetched_until::timestamptz,
        CASE WHEN NOT :needs_fetch AND NOT needs_fetch THEN last_event_at - interval '5 minutes' END)
WHERE id = :id
