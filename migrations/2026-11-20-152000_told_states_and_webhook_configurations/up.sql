-- WAHA's own clock orders what it says of a session's state; ours does not.
ALTER TABLE wa_sessions ADD COLUMN told_at timestamptz;
ALTER TABLE wa_sessions ADD COLUMN hook_url text;                             -- where its webhooks go
ALTER TABLE wa_sessions ADD COLUMN unreachable_since timestamptz;             -- its WAHA has not answered since
ALTER TABLE wa_sessions ADD COLUMN needs_fetch boolean NOT NULL DEFAULT false; -- messages from people may have been missed
CREATE INDEX wa_sessions_check ON wa_sessions (checked_at NULLS FIRST) WHERE is_wanted;

-- Where a tenant wants to hear of events. Sealed columns hold what the encryption key covers.
CREATE TABLE webhook_configurations (
    id              uuid        PRIMARY KEY,
    tenant_id       integer     NOT NULL REFERENCES tenants,
    name            text        NOT NULL,
    url             text        NOT NULL,
    events          text[],     -- NULL: all
    headers         bytea       NOT NULL, -- sealed JSON object of further headers
    secret          bytea       NOT NULL, -- sealed, whsec_…
    previous_secret bytea,      -- sealed; signs beside the new one until previous_until
    previous_until  timestamptz,
    is_active       boolean     NOT NULL DEFAULT true,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_configurations_tenant ON webhook_configurations (tenant_id, id);

-- Not yet handed to the tenant's webhooks.
ALTER TABLE wa_inbound ADD COLUMN is_forwarded boolean NOT NULL DEFAULT false;
CREATE INDEX wa_inbound_forward ON wa_inbound (id) WHERE NOT is_forwarded;
