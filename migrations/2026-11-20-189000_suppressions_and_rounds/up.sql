-- Addresses that nothing is sent to any more. Looked up by fingerprint; the address itself is for people to read, and goes
-- when the person is erased.
CREATE TABLE suppressions (
    id           uuid        PRIMARY KEY,
    tenant_id    integer     NOT NULL,
    channel      text        NOT NULL,
    address_hash bytea       NOT NULL,
    address      text,       -- sealed; NULL: erased
    scope        text        NOT NULL, -- all, or marketing
    reason       text        NOT NULL,
    detail       text,
    delivery_id  uuid,       -- which one found it out
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (address_hash, tenant_id, channel, scope)
);
CREATE INDEX suppressions_tenant ON suppressions (tenant_id, id);

-- Which providers were asked since the last pause; see Round in the code.
ALTER TABLE deliveries ADD COLUMN round integer NOT NULL DEFAULT 0;

-- A provider that asked to be left alone until a moment, beside one that failed.
ALTER TABLE breakers ADD COLUMN paused_until timestamptz NOT NULL DEFAULT '-infinity';
