WITH s AS (
    UPDATE wa_sessions
    SET state_at = CASE WHEN state = :state THEN state_at ELSE now() END, state = :state,
        told_at = coalesce(:told_at, told_at)
    WHERE id = :id AND (told_at > :told_at) IS NOT TRUE AND (state_at = :known_since) IS NOT FALSE
    RETURNING id, state = :working AS is_working
)
UPDATE lines l
SET is_open = s.is_working,
    blocked_until = CASE WHEN s.is_working AND NOT l.is_open THEN '-infinity' ELSE l.blocked_until END,
    free_at = CASE WHEN s.is_working AND NOT l.is_open THEN least(l.free_at, now()) ELSE l.free_at END
FROM s WHERE l.id = s.id
