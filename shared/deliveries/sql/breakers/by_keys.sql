SELECT key, state, failures, since, retry_at, CASE WHEN paused_until > now() THEN paused_until END AS paused_until
FROM breakers WHERE key = ANY (:keys::text[])
