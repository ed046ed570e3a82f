WITH picked AS MATERIALIZED (
    SELECT id FROM wa_sessions
    WHERE (is_wanted OR state <> 'STOPPED')
      -- A session that does not work, or has messages to fetch, is checked more often.
      AND (checked_at IS NULL OR checked_at < now() - CASE
              WHEN state = 'WORKING' AND NOT needs_fetch AND unreachable_since IS NULL THEN interval '30 seconds'
              ELSE interval '10 seconds' END)
    ORDER BY checked_at NULLS FIRST LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE wa_sessions s
-- After a gap, such as any outage of the database, webhooks may have been lost.
SET needs_fetch = s.needs_fetch OR s.checked_at < now() - interval '2 minutes' IS TRUE, checked_at = now()
FROM picked WHERE s.id = picked.id
RETURNING s.id
