-- Partitions without ACCESS EXCLUSIVE on a parent that is in use.

-- Makes the missing daily partitions of a parent, from yesterday to `ahead` days from now; returns how many it made. A child is
-- created alone and then attached: ATTACH PARTITION takes SHARE UPDATE EXCLUSIVE on the parent, and no reader or writer
-- waits for that lock, not even while it is being waited for. The child is empty, so there is nothing to validate. One caller
-- works at a time; a second one returns 0. So does a caller that meets a conflicting lock: there are days to spare. It
-- runs as the owner, because services own no tables.
CREATE FUNCTION attach_partitions(parent text, ahead integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    day   date;
    child text;
    made  integer := 0;
BEGIN
    IF parent NOT IN ('messages', 'deliveries', 'delivery_events') THEN
        RAISE EXCEPTION '% has no daily partitions', parent;
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('posthaste.ensure_partitions')) THEN
        RETURN 0;
    END IF;
    FOR offset_days IN -1 .. ahead LOOP
        day := today + offset_days;
        child := parent || to_char(day, '_YYYYMMDD');
        CONTINUE WHEN to_regclass(child) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)%s',
            child, parent, CASE parent WHEN 'deliveries' THEN ' WITH (fillfactor = 70)' ELSE '' END);
        PERFORM secure_table(child::regclass);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
            uuid7_floor(day::timestamp AT TIME ZONE 'UTC'), uuid7_floor((day + 1)::timestamp AT TIME ZONE 'UTC'));
        made := made + 1;
    END LOOP;
    RETURN made;
EXCEPTION
    WHEN lock_not_available THEN
        RETURN 0;
END
$$;

-- For the version before, and by hand.
CREATE OR REPLACE FUNCTION ensure_partitions(ahead integer) RETURNS integer LANGUAGE sql SECURITY DEFINER AS $$
    SELECT attach_partitions('messages', ahead) + attach_partitions('deliveries', ahead) + attach_partitions('delivery_events', ahead)
$$;

-- Whether anything keeps a day, by indexed questions only. `kept`: a tenant keeps it longer. `alive`: a delivery of it waits, or
-- one of its messages has a delivery in the first minute of the next day that is not over. `free`: neither; deliveries that
-- nothing points at are for the caller to look for. Dynamic statements are planned with their values, so each of them locks the
-- partitions that it reads and no other.
CREATE FUNCTION day_standing(the_day date, default_days integer) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    suffix text := to_char(the_day, '_YYYYMMDD');
    low    uuid := uuid7_floor(the_day::timestamp AT TIME ZONE 'UTC');
    minute uuid := uuid7_floor(the_day::timestamp AT TIME ZONE 'UTC' + interval '1 minute');
    high   uuid := uuid7_floor((the_day + 1)::timestamp AT TIME ZONE 'UTC');
    later  uuid := uuid7_floor((the_day + 1)::timestamp AT TIME ZONE 'UTC' + interval '1 minute');
    today  date := (now() AT TIME ZONE 'UTC')::date;
    found  boolean;
BEGIN
    IF tenant_in_force() IS DISTINCT FROM 0 THEN
        RAISE EXCEPTION 'a day belongs to every tenant: set posthaste.tenant to *';
    END IF;
    IF to_regclass('messages' || suffix) IS NULL OR to_regclass('deliveries' || suffix) IS NULL
       OR to_regclass('delivery_events' || suffix) IS NULL THEN
        RETURN 'missing';
    END IF;
    EXECUTE format($q$SELECT EXISTS (
        SELECT FROM tenants t LEFT JOIN retention r ON r.tenant_id = t.id
        WHERE coalesce($1 + coalesce(r.days, $2) >= $3, true) AND (
            EXISTS (SELECT FROM %I m WHERE m.tenant_id = t.id)
            OR EXISTS (SELECT FROM %I d WHERE d.id >= $4 AND d.id < $5 AND d.message_id < $4 AND d.tenant_id = t.id)))$q$,
        'messages' || suffix, 'deliveries' || suffix) INTO found USING the_day, default_days, today, low, minute;
    IF found THEN
        RETURN 'kept';
    END IF;
    EXECUTE format($q$SELECT EXISTS (SELECT FROM due WHERE delivery_id >= %1$L AND delivery_id < %2$L)
        OR EXISTS (SELECT FROM parked WHERE delivery_id >= %1$L AND delivery_id < %2$L)
        OR EXISTS (SELECT FROM deliveries d WHERE d.id >= %2$L AND d.id < %3$L AND d.message_id < %2$L
                   AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))$q$, low, high, later) INTO found;
    RETURN CASE WHEN found THEN 'alive' ELSE 'free' END;
END
$$;

-- Drops the partitions of a day that nothing keeps; returns `dropped`, `busy`, or what `day_standing` says. Dropping needs
-- ACCESS EXCLUSIVE on the parents. NOWAIT never queues, so nothing waits behind it: it gets a moment in which nobody uses
-- the parents, or no lock at all. Under the locks it reads two ranges by key, and counts nothing.
CREATE FUNCTION drop_partitions(the_day date, default_days integer) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    suffix  text := to_char(the_day, '_YYYYMMDD');
    low     uuid := uuid7_floor(the_day::timestamp AT TIME ZONE 'UTC');
    high    uuid := uuid7_floor((the_day + 1)::timestamp AT TIME ZONE 'UTC');
    verdict text := day_standing(the_day, default_days);
BEGIN
    IF verdict <> 'free' THEN
        RETURN verdict;
    END IF;
    EXECUTE format('LOCK TABLE ONLY messages, ONLY deliveries, ONLY delivery_events, %I, %I, %I IN ACCESS EXCLUSIVE MODE NOWAIT',
        'messages' || suffix, 'deliveries' || suffix, 'delivery_events' || suffix);
    IF EXISTS (SELECT FROM due WHERE delivery_id >= low AND delivery_id < high)
       OR EXISTS (SELECT FROM parked WHERE delivery_id >= low AND delivery_id < high) THEN
        RETURN 'alive';
    END IF;
    EXECUTE format('DROP TABLE %I, %I, %I', 'delivery_events' || suffix, 'deliveries' || suffix, 'messages' || suffix);
    RETURN 'dropped';
EXCEPTION
    WHEN lock_not_available THEN
        RETURN 'busy';
END
$$;

ALTER FUNCTION attach_partitions(text, integer) SET lock_timeout = '100ms';
ALTER FUNCTION drop_partitions(date, integer) SET lock_timeout = '100ms';

-- Functions that run as their owner look into our schema only. pg_temp stands last: left out, it comes first, and everybody who
-- may connect can put a table there.
DO $$
DECLARE
    home text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'tenants'::regclass);
    f    text;
BEGIN
    FOREACH f IN ARRAY ARRAY['attach_partitions(text, integer)', 'ensure_partitions(integer)', 'day_standing(date, integer)',
                             'drop_partitions(date, integer)', 'drop_day(date, integer, boolean)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', f, home);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION attach_partitions(text, integer), day_standing(date, integer), drop_partitions(date, integer) FROM PUBLIC;
