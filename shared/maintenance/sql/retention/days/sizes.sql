-- Of a partition below 64 MB, as many rows as there are; of a larger one, as many as the last ANALYZE found.
-- Its name is in dollar quotes: between apostrophes, the suffix would not be put in.
SELECT CASE WHEN pg_relation_size($$messages@$$) < 67108864 THEN (SELECT count(*) FROM messages@)
            ELSE (SELECT greatest(reltuples, 0)::int8 FROM pg_class WHERE oid = $$messages@$$::regclass)
       END AS messages,
       CASE WHEN pg_relation_size($$deliveries@$$) < 67108864 THEN (SELECT count(*) FROM deliveries@)
            ELSE (SELECT greatest(reltuples, 0)::int8 FROM pg_class WHERE oid = $$deliveries@$$::regclass)
       END AS deliveries,
       CASE WHEN pg_relation_size($$delivery_events@$$) < 67108864 THEN (SELECT count(*) FROM delivery_events@)
            ELSE (SELECT greatest(reltuples, 0)::int8 FROM pg_class WHERE oid = $$delivery_events@$$::regclass)
       END AS delivery_events
