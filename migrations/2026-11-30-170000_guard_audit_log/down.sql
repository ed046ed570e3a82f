DROP FUNCTION secure_tables(), secure_functions();
ALTER FUNCTION grant_and_secure_tables() RENAME TO secure_tables;
CREATE OR REPLACE FUNCTION audit_append(tenant integer, actor text, action text, target text, request_id text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    head   audit_head;
    moment timestamptz;
    link   bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('posthaste.audit'));
    SELECT * INTO STRICT head FROM audit_head;
    moment := clock_timestamp();
    link := audit_hash(head.hash, head.id + 1, tenant, moment, actor, action, target, request_id);
    INSERT INTO audit_entries VALUES (head.id + 1, tenant, moment, actor, action, target, request_id, head.hash, link);
    UPDATE audit_head SET id = head.id + 1, hash = link;
    RETURN head.id + 1;
END
$$;
SELECT secure_tables();
