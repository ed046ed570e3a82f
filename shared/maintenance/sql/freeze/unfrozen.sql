-- A partition of a past day that was not vacuumed since its end. Deliveries that end soon after midnight get some time,
-- and up to a week is caught up. A server without statistics (`track_counts`) reports no vacuum; then only the caller
-- knows.
SELECT x.oid::regclass::text
FROM (
    SELECT c.oid, c.relowner, (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS ended
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('messages'::regclass, 'deliveries'::regclass, 'delivery_events'::regclass)
    -- OFFSET 0 keeps the names of other relations from being read as days.
    OFFSET 0) x
JOIN pg_database d ON d.datname = current_database()
WHERE x.ended <= now() - interval '1 hour' AND x.ended > now() - interval '8 days'
  AND coalesce(pg_stat_get_last_vacuum_time(x.oid) < x.ended, true)
  AND x.oid::regclass::text <> ALL (:passed::text[])
  AND (pg_has_role(session_user, x.relowner, 'USAGE') OR pg_has_role(session_user, d.datdba, 'USAGE'))
ORDER BY x.ended, x.oid LIMIT 1
