-- The durable spine. Words are those of ARCHITECTURE.md. Closed word lists are text: readable at 3 a.m., and a new word
-- needs no migration; the code's enums are their home.

CREATE TABLE tenants (
    id             integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug           text        NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    webhook_secret text        NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- Broker users that speak for one tenant only: their messages must carry a matching, broker-checked user_id.
CREATE TABLE amqp_users (
    username  text    PRIMARY KEY,
    tenant_id integer NOT NULL REFERENCES tenants
);

CREATE TABLE api_keys (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL REFERENCES tenants,
    role       text        NOT NULL,
    name       text        NOT NULL DEFAULT '',
    hash       bytea       NOT NULL UNIQUE, -- SHA-256 of the key; keys are random, so no slow hash is needed
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

-- The first answer under a key, given again for 72 h.
CREATE TABLE idempotency_keys (
    tenant_id    integer     NOT NULL,
    key_hash     bytea       NOT NULL,
    request_hash bytea       NOT NULL,
    subject      uuid        NOT NULL, -- the message or bulk made under it
    response     bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key_hash)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);

-- One call of send-bulk: the content is stored once for all its messages.
CREATE TABLE bulks (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    content    bytea       NOT NULL,
    refused    integer     NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE messages (
    id           uuid        PRIMARY KEY,
    tenant_id    integer     NOT NULL,
    bulk_id      uuid,
    user_id      text,
    category     text,
    priority     text        NOT NULL,
    content      bytea,      -- JSON; NULL: the bulk's
    source       text        NOT NULL, -- http or amqp
    request_id   text,
    traceparent  text,
    scheduled_at timestamptz,
    expires_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (id);
CREATE INDEX messages_tenant ON messages (tenant_id, id);
CREATE INDEX messages_bulk ON messages (bulk_id) WHERE bulk_id IS NOT NULL;

-- No index on a column that changes: every update of a delivery stays heap-only.
CREATE TABLE deliveries (
    id          uuid        PRIMARY KEY,
    message_id  uuid        NOT NULL,
    tenant_id   integer     NOT NULL,
    channel     text        NOT NULL,
    lane        text        NOT NULL,
    recipient   text        NOT NULL,
    state       text        NOT NULL,
    run         integer     NOT NULL DEFAULT 0, -- the fence: every claim adds one, every later write names it
    attempts    smallint    NOT NULL DEFAULT 0, -- those that count towards the maximum
    deferrals   smallint    NOT NULL DEFAULT 0, -- those that did not: the provider asked to wait
    crashes     smallint    NOT NULL DEFAULT 0, -- workers that died holding it
    lease_until timestamptz,
    provider    text,
    updated_at  timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (id);
CREATE INDEX deliveries_message ON deliveries (message_id);

-- The delivery log: append-only facts, each once.
CREATE TABLE delivery_events (
    delivery_id  uuid        NOT NULL,
    run          integer     NOT NULL,
    kind         text        NOT NULL,
    tenant_id    integer     NOT NULL,
    channel      text        NOT NULL,
    at           timestamptz NOT NULL,
    provider     text,       -- set exactly when the event ended a provider call
    outcome      text,
    code         text,
    detail       text,
    duration_ms  integer,
    provider_ref text,
    PRIMARY KEY (delivery_id, run, kind)
) PARTITION BY RANGE (delivery_id);

-- Always equal to the rows of delivery_events, per minute: statistics need no scan.
CREATE TABLE event_counts (
    minute    timestamptz NOT NULL,
    tenant_id integer     NOT NULL,
    channel   text        NOT NULL,
    kind      text        NOT NULL,
    n         bigint      NOT NULL,
    PRIMARY KEY (minute, tenant_id, channel, kind)
);

-- What waits for a moment: one row per waiting delivery.
CREATE TABLE due (
    delivery_id uuid        PRIMARY KEY,
    due_at      timestamptz NOT NULL,
    run         integer     NOT NULL,
    why         text        NOT NULL -- scheduled, retry, or watch (a claim whose worker may have died)
);
CREATE INDEX due_at ON due (due_at);

-- One row per batch handed to the broker. Unpublished: the relay publishes it at act_at. Published: the audit looks at
-- act_at whether each delivery went on, and only then is the row deleted.
CREATE TABLE outbox (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at   timestamptz NOT NULL DEFAULT now(),
    act_at       timestamptz NOT NULL,
    published_at timestamptz,
    deliveries   uuid[]      NOT NULL,
    runs         integer[]   NOT NULL,
    routes       text[]      NOT NULL
);
CREATE INDEX outbox_unpublished ON outbox (act_at) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox (act_at) WHERE published_at IS NOT NULL;

-- In-app notifications; the id is the delivery's, so that a repeat changes nothing.
CREATE TABLE inbox (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    user_id    text        NOT NULL,
    content    bytea       NOT NULL,
    read_at    timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_user ON inbox (tenant_id, user_id, id);
CREATE INDEX inbox_unread ON inbox (tenant_id, user_id) WHERE read_at IS NULL;

CREATE TABLE dead_letters (
    id          uuid        PRIMARY KEY,
    tenant_id   integer,    -- NULL: of an unknown tenant; operators see it
    message_id  uuid,
    delivery_id uuid,
    channel     text,
    origin      text        NOT NULL,
    reason      text        NOT NULL,
    detail      text        NOT NULL DEFAULT '',
    amqp_id     text,       -- message_id property of a refused publish
    routing_key text,
    body        bytea,      -- of a refused publish, so that it can be replayed
    status      text        NOT NULL DEFAULT 'open',
    replay_id   uuid,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_created ON dead_letters (created_at, id);
CREATE INDEX dead_letters_tenant ON dead_letters (tenant_id, created_at, id);
CREATE INDEX dead_letters_open ON dead_letters (created_at, id) WHERE status = 'open';

-- What an admin did to dead letters, and how far it got.
CREATE TABLE replays (
    id          uuid        PRIMARY KEY,
    tenant_id   integer,    -- NULL: an operator's, across tenants
    action      text        NOT NULL, -- replay or drop
    filter      jsonb       NOT NULL,
    actor       text        NOT NULL,
    note        text        NOT NULL,
    rate        integer,    -- letters a second; NULL: as fast as it goes
    matched     integer     NOT NULL,
    replayed    integer     NOT NULL DEFAULT 0,
    skipped     integer     NOT NULL DEFAULT 0,
    status      text        NOT NULL DEFAULT 'running',
    created_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX replays_running ON replays (id) WHERE status = 'running';

-- Small hot tables: vacuum them often, they are cheap to vacuum.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE due SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE event_counts SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- The smallest UUIDv7 of a moment.
CREATE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- Makes the daily partitions from yesterday to `ahead` days from now; says how many it made. Any number of callers at once.
CREATE FUNCTION ensure_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    day    timestamptz;
    made   integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('posthaste.ensure_partitions'));
    FOREACH parent IN ARRAY ARRAY['messages', 'deliveries', 'delivery_events'] LOOP
        FOR offset_days IN -1 .. ahead LOOP
            day := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + make_interval(days => offset_days);
            IF to_regclass(parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD')) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD'), parent,
                    uuid7_floor(day), uuid7_floor(day + interval '1 day'));
                IF parent = 'deliveries' THEN
                    EXECUTE format('ALTER TABLE %I SET (fillfactor = 70)', parent || to_char(day AT TIME ZONE 'UTC', '_YYYYMMDD'));
                END IF;
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

SELECT ensure_partitions(7);
