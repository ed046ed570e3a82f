DROP FUNCTION drop_partitions(date, integer);
DROP FUNCTION day_standing(date, integer);
-- As before, and each new partition is under the policy like its parent. It runs as its owner: services own no tables.
CREATE OR REPLACE FUNCTION ensure_partitions(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    parent text;
    child  text;
    day    timestamptz;
    made   integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('posthaste.ensure_partitions'));
    FOREACH parent IN ARRAY ARRAY['messages', 'deliveries', 'delivery_events'] LOOP
        FOR offset_days IN -1 .. ahead LOOP
            day := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + make_interval(days => offset_days);
            child := parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD');
            IF to_regclass(child) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    child, parent, uuid7_floor(day), uuid7_floor(day + interval '1 day'));
                IF parent = 'deliveries' THEN
                    EXECUTE format('ALTER TABLE %I SET (fillfactor = 70)', child);
                END IF;
                PERFORM secure_table(child::regclass);
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
DROP FUNCTION attach_partitions(text, integer);
ALTER FUNCTION drop_day(date, integer, boolean) SET search_path FROM CURRENT;
