-- The number of a day, counted from today, equals its rank as long as no day before it is missing.
SELECT min(days)
FROM (
    SELECT p.oid, count(*) FILTER (WHERE d.day = d.today + d.place) - 1 AS days
    FROM unnest(ARRAY['messages', 'deliveries', 'delivery_events']::regclass[]) AS p(oid) LEFT JOIN LATERAL (
        SELECT t.today, c.day, row_number() OVER (ORDER BY c.day)::int4 - 1 AS place
        FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) t CROSS JOIN (
            SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = p.oid
            -- OFFSET 0 keeps the names of other relations from being read as days.
            OFFSET 0) c
        WHERE c.day >= t.today) d ON true
    GROUP BY p.oid
) ahead
