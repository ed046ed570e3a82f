-- A call to a provider without idempotency keys, from before it begins until its end is known. If its answer is lost, the
-- echo of the message finds its row here and settles it. Hashes only: neither chat nor text can be read out of it.
CREATE TABLE holds (
    delivery_id uuid        PRIMARY KEY,
    tenant_id   integer     NOT NULL,
    session_id  uuid        NOT NULL,
    run         integer     NOT NULL,
    chat_hash   bytea       NOT NULL,
    body_hash   bytea       NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    until       timestamptz NOT NULL, -- it is sent again after that, should its end be unknown
    echo        text        -- the provider's id of the message that came back
);
CREATE INDEX holds_chat ON holds (session_id, chat_hash) WHERE echo IS NULL;

-- Circuit breakers. What was never in trouble has no row.
CREATE TABLE breakers (
    key      text        PRIMARY KEY, -- waha/session/<id> or waha/host/<origin>
    provider text        NOT NULL,
    state    text        NOT NULL, -- closed, open or half_open
    failures integer     NOT NULL, -- in a row
    since    timestamptz NOT NULL DEFAULT now(),
    retry_at timestamptz NOT NULL  -- open: when a probe may be made; half_open: when the probe counts as lost
);

ALTER TABLE holds SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- How a WhatsApp message reads in statistics: text, image, …, and the country prefix of its number. Neither can be told from
-- sealed columns.
ALTER TABLE deliveries ADD COLUMN kind text;
ALTER TABLE deliveries ADD COLUMN country text;

-- The list of a tenant's sent WhatsApp messages.
CREATE INDEX deliveries_line ON deliveries (line, id) WHERE line IS NOT NULL;
