-- A session that lost its setting posthaste.tenant (behind a transaction pooler, after RESET ALL) saw no rows, and the engine's
-- statements read that as "all of it is done": outbox rows of queued deliveries were deleted. From now on such a session gets an
-- error from every statement that meets a row under the policy.

CREATE FUNCTION no_tenant_in_force() RETURNS integer LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RAISE EXCEPTION 'the setting posthaste.tenant names no tenant: it was lost or never made'
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Session settings must last as long as the connection: a pooler before PostgreSQL has to work in session mode.';
END
$$;

-- The tenant whose rows may be seen; 0: all. Plain SQL, so that it is inlined.
CREATE OR REPLACE FUNCTION tenant_in_force() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE current_setting('posthaste.tenant', true) WHEN '*' THEN 0
           ELSE coalesce(substring(current_setting('posthaste.tenant', true) FROM '^[1-9][0-9]{0,8}$')::integer, no_tenant_in_force()) END
$$;
