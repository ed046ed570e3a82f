-- A login that may not act as the role must not continue as itself. Before the schema exists, the role does not exist
-- either.
SELECT current_user = 'posthaste_services' OR to_regprocedure('secure_tables()') IS NULL
