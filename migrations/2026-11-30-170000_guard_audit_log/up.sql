-- The services' role appends to the audit log through audit_append and in no other way: it cannot forge, change or remove an
-- entry, nor move or remove the head of the chain. It may still read both, which `posthaste audit verify` does.

-- As before, but as the owner. An actor is a role or `cli`, and whom it stands for.
CREATE OR REPLACE FUNCTION audit_append(tenant integer, actor text, action text, target text, request_id text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    head   audit_head;
    moment timestamptz;
    link   bytea;
BEGIN
    IF actor !~ '^(user|agent|producer|admin|operator|cli)(:|$)' THEN
        RAISE EXCEPTION 'an actor of the audit log is a role or cli, a colon and a name' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('posthaste.audit'));
    SELECT * INTO STRICT head FROM audit_head;
    moment := clock_timestamp();
    link := audit_hash(head.hash, head.id + 1, tenant, moment, actor, action, target, request_id);
    INSERT INTO audit_entries VALUES (head.id + 1, tenant, moment, actor, action, target, request_id, head.hash, link);
    UPDATE audit_head SET id = head.id + 1, hash = link;
    RETURN head.id + 1;
END
$$;

-- Functions that run as their owner look names up in the schema of the tables, and among temporary objects last: a table that a
-- caller makes with the name of one of ours must not be taken for it. Nobody but the services' role may call them.
CREATE FUNCTION secure_functions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    f    regprocedure;
    home text;
BEGIN
    FOR f, home IN SELECT p.oid::regprocedure, n.nspname
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_proc p ON p.pronamespace = n.oid
                   WHERE c.oid = 'tenants'::regclass AND p.prosecdef AND pg_has_role(current_user, p.proowner, 'MEMBER') LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', f, home);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END
$$;

-- The former secure_tables() grants rights on every table; what must not be granted is taken back behind it.
ALTER FUNCTION secure_tables() RENAME TO grant_and_secure_tables;
CREATE FUNCTION secure_tables() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM secure_functions();
    PERFORM grant_and_secure_tables();
    REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON audit_entries, audit_head FROM posthaste_services;
END
$$;
REVOKE ALL ON FUNCTION secure_functions(), secure_tables() FROM PUBLIC;
SET LOCAL lock_timeout = '5s';
SELECT secure_tables();
