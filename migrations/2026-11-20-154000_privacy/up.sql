-- Privacy: which keys the database was written with, how long tenants keep things, and who asked to be forgotten.

-- One row per encryption key in use: a service that cannot open each of them does not start.
CREATE TABLE seal_check (
    fingerprint bytea       PRIMARY KEY, -- of a fixed text under the key
    sealed      bytea       NOT NULL,    -- a fixed text, sealed
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- Days a tenant keeps its messages; without a row RETENTION_DAYS holds.
CREATE TABLE retention (
    tenant_id  integer     PRIMARY KEY REFERENCES tenants,
    days       integer     NOT NULL CHECK (days > 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- People who are being erased; the row goes when nothing of them is left.
CREATE TABLE erasures (
    tenant_id  integer     NOT NULL,
    user_id    text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id)
);

CREATE INDEX messages_user ON messages (tenant_id, user_id, id) WHERE user_id IS NOT NULL;
-- Only filled where encryption is on: the exact search for a recipient, and erasure.
CREATE INDEX deliveries_recipient ON deliveries (recipient_hash) WHERE recipient_hash IS NOT NULL;
CREATE INDEX wa_inbound_chat ON wa_inbound (tenant_id, chat_hash, id);
-- Whether a dead delivery may still be replayed, for retention and erasure.
CREATE INDEX dead_letters_delivery ON dead_letters (delivery_id) WHERE delivery_id IS NOT NULL;
