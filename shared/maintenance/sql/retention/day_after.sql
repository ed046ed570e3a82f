SELECT min(d.day)
FROM (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'messages'::regclass
    -- OFFSET 0 keeps the names of other relations from being read as days.
    OFFSET 0
) d
WHERE d.day > coalesce(:day, '-infinity'::date) AND d.day < :end
