DELETE FROM breakers WHERE key = ANY (ARRAY(
    SELECT key FROM breakers
    WHERE paused_until <= now() AND CASE WHEN state = 'closed' AND failures = 0
        THEN since < now() - interval '1 hour' AND retry_at < now() - interval '1 hour'
        ELSE retry_at < now() - interval '7 days' END
    LIMIT :limit FOR UPDATE SKIP LOCKED))
