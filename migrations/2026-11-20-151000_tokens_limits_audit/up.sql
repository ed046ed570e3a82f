-- Refresh tokens, limits of a tenant, and the audit log.

-- One row per family of refresh tokens: all that were made of one another, of which only the newest works. The token names
-- its family; what it proves itself with is stored as a hash.
CREATE TABLE token_families (
    id         uuid        PRIMARY KEY, -- random, not ordered by time: knowing one must not help to guess another
    tenant_id  integer     NOT NULL REFERENCES tenants,
    key_id     uuid        NOT NULL REFERENCES api_keys, -- once it is revoked, so is the family
    hash       bytea       NOT NULL, -- SHA-256 of the newest refresh token
    subject    text        NOT NULL,
    role       text        NOT NULL,
    ttl_s      integer     NOT NULL, -- of its access tokens
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX token_families_expires ON token_families (expires_at);

-- What a tenant may have beyond or below what the settings say; NULL: as the settings say.
CREATE TABLE tenant_limits (
    tenant_id                integer     PRIMARY KEY REFERENCES tenants,
    http_requests_per_minute integer     CHECK (http_requests_per_minute > 0), -- of each credential
    whatsapp_per_minute      integer     CHECK (whatsapp_per_minute > 0), -- of all its sessions together
    updated_at               timestamptz NOT NULL DEFAULT now()
);

-- Who changed what. Each entry holds the hash of the one before it, so that a changed, missing or inserted entry shows.
CREATE TABLE audit_entries (
    id         bigint      PRIMARY KEY, -- without gaps
    tenant_id  integer,    -- NULL: of no tenant, or of several
    at         timestamptz NOT NULL,
    actor      text        NOT NULL,
    action     text        NOT NULL,
    target     text        NOT NULL,
    request_id text,
    prev_hash  bytea       NOT NULL,
    hash       bytea       NOT NULL
);
CREATE INDEX audit_entries_tenant ON audit_entries (tenant_id, id);

-- The newest entry: the end of the chain is known without reading the log, and a log cut off at its end shows.
CREATE TABLE audit_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id       bigint  NOT NULL,
    hash     bytea   NOT NULL
);
INSERT INTO audit_head (id, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log only grows';
END
$$;
CREATE TRIGGER audit_entries_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();

-- SHA-256 over the hash before and every column, each with its length (NULL: a dash), so that no two entries read the same.
-- `posthaste audit verify` works it out by itself.
CREATE FUNCTION audit_hash(prev bytea, id bigint, tenant integer, at timestamptz, actor text, action text, target text,
    request_id text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(prev || convert_to(string_agg(coalesce(octet_length(part) || ':' || part, '-'), ',' ORDER BY place), 'UTF8'))
    FROM unnest(ARRAY[id::text, tenant::text, (extract(epoch FROM at) * 1000000)::bigint::text, actor, action, target, request_id])
        WITH ORDINALITY AS parts (part, place)
$$;

-- The only way into the log: one entry at a time, whoever writes it.
CREATE FUNCTION audit_append(tenant integer, actor text, action text, target text, request_id text) RETURNS bigint
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
