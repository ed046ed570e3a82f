DROP FUNCTION drop_day(date, integer, boolean);
DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN SELECT tenant_tables() LOOP
        EXECUTE format('DROP POLICY IF EXISTS of_tenant ON %s', t);
        EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY', t);
    END LOOP;
END
$$;
-- The role stays: other databases of the server may use it. What it may do here goes with its rights.
DROP OWNED BY posthaste_services;
CREATE OR REPLACE FUNCTION ensure_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql SECURITY INVOKER AS $$
DECLARE
    parent text;
    day    timestamptz;
    made   integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('posthaste.ensure_partitions'));
    FOREACH parent IN ARRAY ARRAY['messages', 'deliveries', 'delivery_events'] LOOP
        FOR offset_days IN -1 .. ahead LOOP
            day := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + make_interval(days => offset_days);
            IF to_regclass(parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD')) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD'), parent,
                    uuid7_floor(day), uuid7_floor(day + interval '1 day'));
                IF parent = 'deliveries' THEN
                    EXECUTE format('ALTER TABLE %I SET (fillfactor = 70)', parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD'));
                END IF;
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
DROP FUNCTION secure_tables(), secure_table(regclass), tenant_tables(), tenant_in_force();
