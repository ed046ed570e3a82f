WITH s AS (
    UPDATE wa_sessions
    SET name = :name, base_url = :base_url, api_key = :api_key, webhook_secret = :webhook_secret,
        signature = :signature, allow_ips = :allow_ips, on_limit = :on_limit,
        previous_secret = :previous_secret, previous_until = :previous_until,
        -- A session with another address must be checked again.
        checked_at = NULL, updated_at = now()
    WHERE id = :id
    RETURNING id
), l AS (
    UPDATE lines
    SET rate = :rate, daily_cap = :daily_cap, gap_ms = :gap_ms, jitter_ms = :jitter_ms,
        free_at = least(free_at, now())
    WHERE id = :id
)
SELECT id FROM s
