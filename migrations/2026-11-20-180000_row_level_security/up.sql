-- Row-level security as the floor: services act as a role that sees the rows of one tenant, or of all, as its setting
-- `posthaste.tenant` says; without a setting it sees nothing. `posthaste migrate` calls secure_tables() after every run,
-- so tables of later migrations are covered without naming them.

-- The tenant whose rows may be seen; 0: all; NULL: none.
CREATE FUNCTION tenant_in_force() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE current_setting('posthaste.tenant', true) WHEN '*' THEN 0
           ELSE substring(current_setting('posthaste.tenant', true) FROM '^[1-9][0-9]{0,8}$')::integer END
$$;

-- Puts a table that belongs to tenants under the policy. Sub-selects, so that the setting is read once per statement.
CREATE FUNCTION secure_table(t regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    tenant text := CASE WHEN t = 'tenants'::regclass THEN 'id' ELSE 'tenant_id' END;
BEGIN
    IF NOT (SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = t) THEN
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = t AND polname = 'of_tenant') THEN
        EXECUTE format('CREATE POLICY of_tenant ON %s USING ((SELECT tenant_in_force()) = 0 OR %I = (SELECT tenant_in_force()))', t, tenant);
    END IF;
END
$$;

-- Tables that belong to tenants: those with a tenant_id, and the tenants themselves. Partitions too: the hot statements
-- open them directly.
CREATE FUNCTION tenant_tables() RETURNS SETOF regclass LANGUAGE sql STABLE AS $$
    SELECT c.oid::regclass FROM pg_class c
    WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'tenants'::regclass) AND c.relkind IN ('r', 'p')
      AND (c.oid = 'tenants'::regclass
           OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))
$$;

-- The role, its rights and the policies; may be repeated at any time by the owner of the tables.
CREATE FUNCTION secure_tables() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    home text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'tenants'::regclass);
    t    regclass;
BEGIN
    -- Roles belong to the whole server: another database may be making the same one right now.
    IF to_regrole('posthaste_services') IS NULL THEN
        BEGIN
            CREATE ROLE posthaste_services NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role posthaste_services is missing and % may not create it: run as a superuser: CREATE ROLE posthaste_services NOLOGIN; GRANT posthaste_services TO %;',
                    current_user, quote_ident(current_user);
        END;
    END IF;
    IF (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = 'posthaste_services') THEN
        RAISE EXCEPTION 'the role posthaste_services bypasses row-level security: run as a superuser: ALTER ROLE posthaste_services NOSUPERUSER NOBYPASSRLS;';
    END IF;
    IF NOT pg_has_role(current_user, 'posthaste_services', 'MEMBER') THEN
        BEGIN
            EXECUTE format('GRANT posthaste_services TO %I', current_user);
        EXCEPTION
            WHEN unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION '% may not act as posthaste_services: run as a superuser: GRANT posthaste_services TO %;', current_user, quote_ident(current_user);
        END;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO posthaste_services', home);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO posthaste_services', home);
    EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO posthaste_services', home);
    EXECUTE format('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA %I TO posthaste_services', home);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO posthaste_services', home);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT USAGE, SELECT ON SEQUENCES TO posthaste_services', home);
    IF to_regclass('__diesel_schema_migrations') IS NOT NULL THEN
        REVOKE INSERT, UPDATE, DELETE ON __diesel_schema_migrations FROM posthaste_services;
    END IF;
    FOR t IN SELECT tenant_tables() LOOP
        PERFORM secure_table(t);
    END LOOP;
END
$$;

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

-- Drops the partitions of a day, if the time of every tenant in it is over and nothing in it is alive. A message and its
-- deliveries may lie on both sides of a midnight, up to a minute apart.
CREATE FUNCTION drop_day(the_day date, default_days integer, dry boolean)
RETURNS TABLE (verdict text, messages bigint, deliveries bigint, events bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    suffix  text := to_char(the_day, '_YYYYMMDD');
    low     uuid := uuid7_floor(the_day::timestamp AT TIME ZONE 'UTC');
    high    uuid := uuid7_floor((the_day + 1)::timestamp AT TIME ZONE 'UTC');
    later   uuid := uuid7_floor((the_day + 1)::timestamp AT TIME ZONE 'UTC' + interval '1 minute');
    today   date := (now() AT TIME ZONE 'UTC')::date;
    keepers integer[];
    found   boolean;
BEGIN
    IF tenant_in_force() IS DISTINCT FROM 0 THEN
        RAISE EXCEPTION 'drop_day must see every tenant: set posthaste.tenant to *';
    END IF;
    IF to_regclass('messages' || suffix) IS NULL THEN
        RETURN;
    END IF;
    -- The tenants whose time is not over; without a number of days it never is.
    keepers := ARRAY(SELECT t.id FROM tenants t LEFT JOIN retention r ON r.tenant_id = t.id
                     WHERE coalesce(the_day + coalesce(r.days, default_days) >= today, true));
    PERFORM set_config('lock_timeout', '2s', true);
    EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE tenant_id = ANY ($1)) OR EXISTS (SELECT FROM %I WHERE tenant_id = ANY ($1))',
        'messages' || suffix, 'deliveries' || suffix) INTO found USING keepers;
    IF found THEN
        RETURN QUERY SELECT 'kept: a tenant in it keeps it longer', 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    EXECUTE format($q$SELECT EXISTS (SELECT FROM %I WHERE state IN ('scheduled', 'queued', 'sending', 'retrying'))
        OR EXISTS (SELECT FROM due WHERE delivery_id >= $1 AND delivery_id < $2)
        OR EXISTS (SELECT FROM parked WHERE delivery_id >= $1 AND delivery_id < $2)
        OR EXISTS (SELECT FROM dead_letters WHERE status = 'open' AND delivery_id >= $1 AND delivery_id < $2)
        OR EXISTS (SELECT FROM deliveries d WHERE d.id >= $2 AND d.id < $3 AND d.message_id < $2
            AND (d.state IN ('scheduled', 'queued', 'sending', 'retrying')
                 OR EXISTS (SELECT FROM dead_letters l WHERE l.status = 'open' AND l.delivery_id = d.id)))$q$,
        'deliveries' || suffix) INTO found USING low, high, later;
    IF found THEN
        RETURN QUERY SELECT 'kept: something in it is still alive', 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    EXECUTE format('SELECT (SELECT count(*) FROM %I), (SELECT count(*) FROM %I), (SELECT count(*) FROM %I)',
        'messages' || suffix, 'deliveries' || suffix, 'delivery_events' || suffix) INTO messages, deliveries, events;
    verdict := 'to be dropped';
    IF NOT dry THEN
        EXECUTE format('DROP TABLE %I, %I, %I', 'delivery_events' || suffix, 'deliveries' || suffix, 'messages' || suffix);
        verdict := 'dropped';
    END IF;
    RETURN NEXT;
END
$$;

REVOKE ALL ON FUNCTION ensure_partitions(integer), drop_day(date, integer, boolean), secure_table(regclass), secure_tables() FROM PUBLIC;
SELECT secure_tables();
