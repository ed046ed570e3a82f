CREATE OR REPLACE FUNCTION tenant_in_force() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE current_setting('posthaste.tenant', true) WHEN '*' THEN 0
           ELSE substring(current_setting('posthaste.tenant', true) FROM '^[1-9][0-9]{0,8}$')::integer END
$$;
DROP FUNCTION no_tenant_in_force();
