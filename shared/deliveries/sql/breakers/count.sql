-- The first condition matches an index, so closed breakers are not read.
SELECT CASE provider WHEN 'waha' THEN split_part(key, '/', 2) ELSE provider END AS scope, state, count(*) AS number
FROM breakers
WHERE (state <> 'closed' OR failures > 0 OR paused_until > '-infinity')
  AND (state <> 'closed' OR failures > 0 OR paused_until > now())
GROUP BY 1, 2
