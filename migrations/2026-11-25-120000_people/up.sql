-- The people: who they are, what they want, what is told to them by rule, template and broadcast. See docs/adr/0012 to 0014.

-- A person, known by contact data, by preferences, or both. One row, so that a claim finds everything with one look.
CREATE TABLE users (
    tenant_id   integer     NOT NULL,
    user_id     text        NOT NULL,
    profile     bytea,      -- sealed JSON: email, phone, name; NULL: only preferences are known
    locale      text,
    time_zone   text,       -- IANA; NULL: UTC
    quiet_start smallint,   -- minutes after midnight, local
    quiet_end   smallint,
    attributes  jsonb       NOT NULL DEFAULT '{}', -- for targets and conditions, so never sealed
    preferences jsonb,      -- as domain/preference.rs has it; NULL: none were ever given
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id)
);
CREATE INDEX users_created ON users (tenant_id, created_at, user_id) WHERE profile IS NOT NULL;

-- Where push notifications reach a person. A token that comes again belongs to whoever gave it last.
CREATE TABLE devices (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    user_id    text        NOT NULL,
    token      text        NOT NULL, -- sealed
    token_hash bytea       NOT NULL, -- fingerprint
    platform   text,       -- ios, android or web; NULL: the shape of the token tells
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, token_hash)
);
CREATE INDEX devices_user ON devices (tenant_id, user_id, id);

-- A bulk import of people, and how far it got.
CREATE TABLE imports (
    id          uuid        PRIMARY KEY,
    tenant_id   integer     NOT NULL,
    status      text        NOT NULL DEFAULT 'running', -- running, completed or failed
    bytes       bigint      NOT NULL DEFAULT 0,
    rows        bigint      NOT NULL DEFAULT 0,
    imported    bigint      NOT NULL DEFAULT 0,
    refused     bigint      NOT NULL DEFAULT 0,
    faults      jsonb       NOT NULL DEFAULT '[]', -- the first of them: line, field, message; never a value
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX imports_created ON imports (created_at);

CREATE TABLE templates (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    name       text        NOT NULL,
    category   text,
    version    integer     NOT NULL DEFAULT 1,
    variables  text[]      NOT NULL DEFAULT '{}', -- declared: required at each send
    parts      jsonb       NOT NULL, -- by channel, or `default`: title, message, html
    is_active  boolean     NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, name)
);
CREATE INDEX templates_tenant ON templates (tenant_id, id);

-- What a template was before; the current version is here too.
CREATE TABLE template_versions (
    template_id uuid        NOT NULL,
    version     integer     NOT NULL,
    tenant_id   integer     NOT NULL,
    variables   text[]      NOT NULL,
    parts       jsonb       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (template_id, version)
);

-- Kinds of notifications, and the categories they belong to.
CREATE TABLE categories (
    tenant_id integer NOT NULL,
    name      text    NOT NULL,
    label     text,
    class     text,   -- essential, transactional or marketing; NULL: as its name says
    PRIMARY KEY (tenant_id, name)
);
CREATE TABLE notification_types (
    tenant_id       integer NOT NULL,
    name            text    NOT NULL,
    category        text,
    label           text,
    description     text,
    class           text,   -- NULL: its category's
    channels        text[]  NOT NULL DEFAULT '{in_app}',
    default_enabled boolean NOT NULL DEFAULT true,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE rules (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    name       text        NOT NULL,
    event_type text        NOT NULL, -- a name, or a beginning with `.*`
    definition jsonb       NOT NULL, -- as domain/rule.rs has it
    is_active  boolean     NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX rules_tenant ON rules (tenant_id, id);

-- Raised by every change to what a tenant manages, so that each process knows when its copy is old.
CREATE TABLE catalogues (
    tenant_id integer PRIMARY KEY,
    version   bigint  NOT NULL DEFAULT 1
);
CREATE FUNCTION raise_catalogue() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    whose integer := CASE TG_OP WHEN 'DELETE' THEN OLD.tenant_id ELSE NEW.tenant_id END;
BEGIN
    INSERT INTO catalogues (tenant_id) VALUES (whose) ON CONFLICT (tenant_id) DO UPDATE SET version = catalogues.version + 1;
    RETURN NULL;
END
$$;
CREATE TRIGGER raise_catalogue AFTER INSERT OR UPDATE OR DELETE ON templates FOR EACH ROW EXECUTE FUNCTION raise_catalogue();
CREATE TRIGGER raise_catalogue AFTER INSERT OR UPDATE OR DELETE ON categories FOR EACH ROW EXECUTE FUNCTION raise_catalogue();
CREATE TRIGGER raise_catalogue AFTER INSERT OR UPDATE OR DELETE ON notification_types FOR EACH ROW EXECUTE FUNCTION raise_catalogue();
CREATE TRIGGER raise_catalogue AFTER INSERT OR UPDATE OR DELETE ON rules FOR EACH ROW EXECUTE FUNCTION raise_catalogue();

-- What happened in other systems, as they told us.
CREATE TABLE event_log (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    event_type text        NOT NULL,
    user_id    text,
    data       bytea       NOT NULL, -- sealed JSON
    matched    uuid[]      NOT NULL, -- the rules
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_log_tenant ON event_log (tenant_id, id);
CREATE INDEX event_log_user ON event_log (tenant_id, user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX event_log_created ON event_log (created_at);

-- When a rule last told a person something: the moments within its throttle's window.
CREATE TABLE throttles (
    rule_id   uuid          NOT NULL,
    tenant_id integer       NOT NULL,
    user_id   text          NOT NULL,
    taken     timestamptz[] NOT NULL,
    most      integer       NOT NULL, -- so many of them
    seconds   integer       NOT NULL, -- within so long
    taker     uuid          NOT NULL, -- what took the last one
    until     timestamptz   NOT NULL, -- after this the row says nothing any more
    PRIMARY KEY (rule_id, user_id)
);
CREATE INDEX throttles_until ON throttles (until);
CREATE INDEX throttles_user ON throttles (tenant_id, user_id);

-- A window in which events of one rule, person and key gather; at most one of them is open.
CREATE TABLE digests (
    id         uuid        PRIMARY KEY,
    tenant_id  integer     NOT NULL,
    rule_id    uuid        NOT NULL,
    user_id    text        NOT NULL,
    key        text        NOT NULL DEFAULT '', -- a hash of what keeps windows apart
    state      text        NOT NULL, -- open; full: takes nothing more; closed
    items      integer     NOT NULL DEFAULT 0,
    max_items  integer     NOT NULL,
    event_type text        NOT NULL, -- of the last event
    opened_at  timestamptz NOT NULL,
    closes_at  timestamptz NOT NULL,
    latest_at  timestamptz NOT NULL, -- a sliding window closes then at the latest
    message_id uuid        -- what it became; NULL: it was empty or dropped, or is not closed
);
CREATE UNIQUE INDEX digests_open ON digests (tenant_id, rule_id, user_id, key) WHERE state = 'open';
CREATE INDEX digests_due ON digests (closes_at) WHERE state <> 'closed';
CREATE INDEX digests_user ON digests (tenant_id, user_id);
CREATE INDEX digests_closed ON digests (closes_at) WHERE state = 'closed';

CREATE TABLE digest_items (
    digest_id  uuid        NOT NULL,
    event_id   uuid        NOT NULL,
    tenant_id  integer     NOT NULL,
    data       bytea       NOT NULL, -- sealed JSON: the event's data
    PRIMARY KEY (digest_id, event_id)
);

CREATE TABLE broadcasts (
    id           uuid        PRIMARY KEY,
    tenant_id    integer     NOT NULL,
    definition   bytea       NOT NULL, -- sealed JSON: what is told, and to whom
    status       text        NOT NULL, -- scheduled, running, paused, completed or cancelled
    scheduled_at timestamptz,
    after_user   text        NOT NULL DEFAULT '', -- everybody up to here was told
    pages        integer     NOT NULL DEFAULT 0, -- its rows in broadcast_pages
    total        bigint,     -- people it is meant for; NULL: not counted yet
    told         bigint      NOT NULL DEFAULT 0, -- people so far
    accepted     bigint      NOT NULL DEFAULT 0, -- deliveries so far
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz
);
CREATE INDEX broadcasts_tenant ON broadcasts (tenant_id, id);
CREATE INDEX broadcasts_open ON broadcasts (id) WHERE status IN ('scheduled', 'running', 'paused');
CREATE INDEX broadcasts_created ON broadcasts (created_at);

-- The people that one commit told. A page knows where its deliveries stand, so that nobody counts millions of rows.
CREATE TABLE broadcast_pages (
    broadcast_id uuid        NOT NULL,
    no           integer     NOT NULL,
    tenant_id    integer     NOT NULL,
    first        uuid        NOT NULL, -- all of its deliveries lie between these two; others may as well
    last         uuid        NOT NULL,
    accepted     integer     NOT NULL, -- deliveries
    waiting      integer     NOT NULL, -- of them, as last counted: without an end
    sent         integer     NOT NULL DEFAULT 0,
    delivered    integer     NOT NULL DEFAULT 0,
    failed       integer     NOT NULL DEFAULT 0,
    suppressed   integer     NOT NULL DEFAULT 0,
    cancelled    integer     NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    count_at     timestamptz, -- when they are counted again; NULL: they change no more
    PRIMARY KEY (broadcast_id, no)
);
CREATE INDEX broadcast_pages_created ON broadcast_pages (created_at);
CREATE INDEX broadcast_pages_due ON broadcast_pages (count_at) WHERE count_at IS NOT NULL;

-- Deliveries per day of their acceptance and what they were about, each once for each kind of event it ever had: analytics
-- need no scan.
CREATE TABLE daily_counts (
    day       date    NOT NULL,
    tenant_id integer NOT NULL,
    channel   text    NOT NULL,
    provider  text    NOT NULL, -- empty: none was asked
    category  text    NOT NULL,
    template  text    NOT NULL,
    kind      text    NOT NULL, -- of an event; or tried, or wrong: one of several kinds
    n         bigint  NOT NULL,
    PRIMARY KEY (tenant_id, day, channel, provider, category, template, kind)
) WITH (fillfactor = 50);
ALTER TABLE daily_counts SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- The kinds of events that a delivery ever had, as bits, and those that its last change added: whoever changes the row knows
-- what is to be counted, since nobody else can change it at the same time.
ALTER TABLE deliveries ADD COLUMN reached smallint NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN fresh   smallint NOT NULL DEFAULT 0;

-- The bits of a kind. What was delivered was sent as well. Two more bits say of each delivery once that somebody tried (4096),
-- and that it went wrong (8192). Kinds that say nothing about what a delivery came to have none.
CREATE FUNCTION reached_bits(kind text) RETURNS smallint LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE kind WHEN 'sent' THEN 4096 + 1 WHEN 'delivered' THEN 4096 + 3 WHEN 'failed' THEN 12288 + 4 WHEN 'bounced' THEN 12288 + 8
        WHEN 'dead' THEN 12288 + 16
        WHEN 'suppressed' THEN 32 WHEN 'expired' THEN 64 WHEN 'cancelled' THEN 128 WHEN 'read' THEN 256 WHEN 'opened' THEN 512
        WHEN 'clicked' THEN 1024 WHEN 'complained' THEN 2048 ELSE 0 END::smallint
$$;

-- The UTC day in which a UUIDv7 was made.
CREATE FUNCTION uuid7_day(id uuid) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT (timestamp 'epoch' + ('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint * interval '1 millisecond')::date
$$;

ALTER TABLE deliveries ADD COLUMN reason   text; -- why it waits or ended, as a word: quiet_hours, no_address, preference …
ALTER TABLE deliveries ADD COLUMN category text;
ALTER TABLE deliveries ADD COLUMN template text;

-- The order in which entries came into an inbox. The row of the person is locked until the commit, so nobody who reads up to
-- a number misses a smaller one that comes later. A new row begins at the clock, so that numbers also grow where a person was
-- forgotten in between.
CREATE TABLE inboxes (
    tenant_id integer NOT NULL,
    user_id   text    NOT NULL,
    last_seq  bigint  NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
) WITH (fillfactor = 70);
ALTER TABLE inboxes SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
ALTER TABLE inbox ADD COLUMN seq bigint NOT NULL DEFAULT 0;
ALTER TABLE inbox ADD COLUMN kind text;     -- as the content has it, to list by
ALTER TABLE inbox ADD COLUMN category text;
ALTER TABLE inbox ADD COLUMN archived_at timestamptz;
UPDATE inbox i SET seq = n.seq
FROM (SELECT id, row_number() OVER (PARTITION BY tenant_id, user_id ORDER BY id) AS seq FROM inbox) n WHERE n.id = i.id;
INSERT INTO inboxes (tenant_id, user_id, last_seq) SELECT tenant_id, user_id, max(seq) FROM inbox GROUP BY tenant_id, user_id;
CREATE INDEX inbox_seq ON inbox (tenant_id, user_id, seq);
DROP INDEX inbox_user;
DROP INDEX inbox_unread;
CREATE INDEX inbox_unread ON inbox (tenant_id, user_id, seq) WHERE read_at IS NULL AND archived_at IS NULL;
