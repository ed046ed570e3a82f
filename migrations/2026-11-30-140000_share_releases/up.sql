-- Releases park in the shares of tenants, as acceptance does, and polls read small indexes.
SET LOCAL lock_timeout = '5s';

-- The id of a tenant's share of a route, as the services compute it: a UUIDv8 of the SHA-256 of `<tenant>/<channel>.<lane>`.
CREATE FUNCTION share_line(of_tenant integer, of_route text) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT encode(set_byte(set_byte(h, 6, (get_byte(h, 6) & 15) | 128), 8, (get_byte(h, 8) & 63) | 128), 'hex')::uuid
    FROM (SELECT substring(sha256(convert_to(of_tenant || '/' || of_route, 'UTF8')) FROM 1 FOR 16) AS h) hashed
$$;

-- An index whose predicate names a column makes every update of that column a new entry in every index. `waiting` changes with
-- each commit that parks; whether it is above zero rarely does.
ALTER TABLE lines ADD COLUMN is_waiting boolean NOT NULL GENERATED ALWAYS AS (waiting > 0) STORED;
DROP INDEX lines_free;
DROP INDEX lines_shares;
CREATE INDEX lines_free ON lines (free_at) WHERE is_waiting AND is_open AND kind = 'session';
CREATE INDEX lines_shares ON lines (route, id) WHERE is_waiting AND kind = 'share';
