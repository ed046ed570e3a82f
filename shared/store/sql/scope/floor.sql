SELECT current_user = 'posthaste_services'
           AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user) AS is_bound,
       (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = session_user)
           OR pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = 'tenants'::regclass), 'MEMBER')
           AS login_is_privileged,
       ARRAY(SELECT t::text FROM tenant_tables() t JOIN pg_class c ON c.oid = t
             WHERE NOT (c.relrowsecurity AND c.relforcerowsecurity
                        AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid))
             ORDER BY 1) AS open_tables
