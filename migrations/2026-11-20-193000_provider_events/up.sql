-- What providers told us afterwards, once each; `pending` ones are the queue of its processing. Whose an event is shows when
-- its delivery is found. Its body goes as soon as it was worked through; the row stays a while and tells repeats.
CREATE TABLE provider_events (
    id         uuid        PRIMARY KEY,
    teller     text        NOT NULL, -- sendgrid, twilio, ses or tracking
    dedup      bytea       NOT NULL UNIQUE, -- SHA-256 of what makes it the same event
    body       bytea       NOT NULL, -- sealed
    status     text        NOT NULL DEFAULT 'pending', -- pending, done or ignored
    tries      smallint    NOT NULL DEFAULT 0,
    due_at     timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX provider_events_pending ON provider_events (due_at) WHERE status = 'pending';
CREATE INDEX provider_events_created ON provider_events (created_at);

-- Mails in a row that an address did not take for the time being; a delivered one empties it. Fingerprints only.
CREATE TABLE soft_bounces (
    address_hash bytea       NOT NULL,
    tenant_id    integer     NOT NULL,
    channel      text        NOT NULL,
    event_id     uuid        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (address_hash, tenant_id, channel, event_id)
);
CREATE INDEX soft_bounces_created ON soft_bounces (created_at);

-- Secrets that the services make up and share among themselves.
CREATE TABLE service_secrets (
    id      integer PRIMARY KEY, -- 1: signs the pixels and links of tracked mails
    secret  bytea   NOT NULL -- sealed
);
