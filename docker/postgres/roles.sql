-- Run once, by the image of PostgreSQL, when it makes the database. The superuser serves for this alone.
--
-- posthaste_owner owns the database and runs `posthaste migrate` and the commands of operators. posthaste_app is the login of the
-- services: it owns nothing, has no right of its own, and may only act as posthaste_services, which row-level security binds.
\getenv owner_password POSTGRES_OWNER_PASSWORD
\getenv app_password POSTGRES_APP_PASSWORD
CREATE ROLE posthaste_services NOLOGIN NOSUPERUSER NOBYPASSRLS;
CREATE ROLE posthaste_owner LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD :'owner_password' IN ROLE posthaste_services;
CREATE ROLE posthaste_app LOGIN NOSUPERUSER NOBYPASSRLS NOINHERIT PASSWORD :'app_password' IN ROLE posthaste_services;
CREATE DATABASE posthaste OWNER posthaste_owner;
REVOKE TEMPORARY ON DATABASE posthaste FROM PUBLIC;
