WITH s AS (
    UPDATE wa_sessions SET state_at = CASE WHEN state = :state THEN state_at ELSE now() END, state = :state
    WHERE id = :session AND state_at <= :began
    RETURNING id
)
UPDATE lines SET is_open = false WHERE id IN (SELECT id FROM s)
