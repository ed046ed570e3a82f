-- The first condition matches an index, so closed breakers are not read.
SELECT key, state, failures, since, retry_at, CASE WHEN paused_until > now() THEN paused_until END AS paused_until
FROM breakers
WHERE (state <> 'closed' OR failures > 0 OR paused_until > '-infinity')
  AND (state <> 'closed' OR failures > 0 OR paused_until > now())
