-- WhatsApp sessions, and the lines in which deliveries wait for a slot. Sealed columns hold what the encryption key covers.

CREATE TABLE wa_sessions (
    id                  uuid        PRIMARY KEY,
    tenant_id           integer     NOT NULL REFERENCES tenants,
    name                text        NOT NULL, -- the session's name at WAHA
    base_url            text        NOT NULL,
    api_key             bytea,      -- sealed
    webhook_secret      bytea,      -- sealed
    previous_secret     bytea,      -- sealed; still verifies until previous_until
    previous_until      timestamptz,
    signature           text        NOT NULL DEFAULT 'both', -- waha, seed or both
    allow_ips           text[]      NOT NULL DEFAULT '{}',
    on_limit            text        NOT NULL DEFAULT 'queue', -- queue or reject
    state               text        NOT NULL DEFAULT 'STOPPED', -- as WAHA says it
    state_at            timestamptz NOT NULL DEFAULT now(),
    is_wanted           boolean     NOT NULL DEFAULT false, -- started by its admin: what WAHA forgot is put back
    last_event_at       timestamptz, -- any webhook of it
    checked_at          timestamptz, -- when it was last compared with WAHA
    fetched_until       timestamptz DEFAULT now(), -- inbound messages up to here are known; what came before is not ours
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, name)
);
CREATE INDEX wa_sessions_name ON wa_sessions (name);

-- A line is where deliveries wait for a slot: one for each WhatsApp session (with the session's id), and one for each share
-- of a tenant in a channel. `slots` are the moments taken within the window, oldest first.
CREATE TABLE lines (
    id            uuid          PRIMARY KEY,
    tenant_id     integer       NOT NULL,
    kind          text          NOT NULL, -- session, share, or tenant: the limit over all sessions of a tenant
    route         text          NOT NULL, -- <channel>.<lane>; of a session: its channel
    rate          integer,      -- slots in any 60 seconds; NULL: no limit
    daily_cap     integer,      -- slots in a UTC day; NULL: no cap
    gap_ms        integer       NOT NULL DEFAULT 0, -- least pause between two slots
    jitter_ms     integer       NOT NULL DEFAULT 0, -- chance lengthens a pause by up to this
    slots         timestamptz[] NOT NULL DEFAULT '{}',
    day           date          NOT NULL DEFAULT current_date,
    day_slots     integer       NOT NULL DEFAULT 0,
    is_open       boolean       NOT NULL DEFAULT true, -- a session that is not WORKING is shut
    blocked_until timestamptz   NOT NULL DEFAULT '-infinity', -- asked to wait, by the provider or a breaker
    free_at       timestamptz   NOT NULL DEFAULT '-infinity', -- when the next slot can be had
    waiting       integer       NOT NULL DEFAULT 0, -- its rows in `parked`
    released      integer       NOT NULL DEFAULT 0, -- handed to the broker and not yet seen by a claim
    released_at   timestamptz   NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
CREATE INDEX lines_free ON lines (free_at) WHERE waiting > 0 AND is_open AND kind = 'session';
CREATE UNIQUE INDEX lines_tenant ON lines (tenant_id) WHERE kind = 'tenant';
CREATE INDEX lines_shares ON lines (route, id) WHERE waiting > 0 AND kind = 'share';

-- Deliveries that wait in a line; their state is `queued`.
CREATE TABLE parked (
    delivery_id uuid     PRIMARY KEY,
    line        uuid     NOT NULL,
    run         integer  NOT NULL,
    rank        smallint NOT NULL -- urgent 3, high 2, normal 1, low 0
);
CREATE INDEX parked_next ON parked (line, rank DESC, delivery_id);

ALTER TABLE deliveries ADD COLUMN line uuid;                -- the line it must get a slot from
ALTER TABLE deliveries ADD COLUMN rank smallint NOT NULL DEFAULT 1;
ALTER TABLE deliveries ADD COLUMN recipient_hash bytea;     -- fingerprint, for exact search and erasure

-- What a provider called a delivery, so that what it tells later finds it.
CREATE TABLE provider_refs (
    provider    text        NOT NULL,
    ref         text        NOT NULL,
    delivery_id uuid        NOT NULL,
    tenant_id   integer     NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, ref, delivery_id)
);
CREATE INDEX provider_refs_created ON provider_refs (created_at);

-- Every webhook of WAHA, once; `pending` ones are the queue of its processing.
CREATE TABLE waha_events (
    id           uuid        PRIMARY KEY,
    tenant_id    integer     NOT NULL,
    session_id   uuid        NOT NULL,
    dedup        bytea       NOT NULL, -- SHA-256 of what makes it the same event
    event        text        NOT NULL,
    body         bytea       NOT NULL, -- sealed
    status       text        NOT NULL DEFAULT 'pending', -- pending, done or ignored
    tries        smallint    NOT NULL DEFAULT 0,
    due_at       timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (session_id, dedup)
);
CREATE INDEX waha_events_pending ON waha_events (due_at) WHERE status = 'pending';
CREATE INDEX waha_events_created ON waha_events (created_at);

-- Messages from people, each once.
CREATE TABLE wa_inbound (
    id          uuid        PRIMARY KEY,
    tenant_id   integer     NOT NULL,
    session_id  uuid        NOT NULL,
    waha_id     text        NOT NULL,
    chat_hash   bytea       NOT NULL, -- fingerprint of the sender's number
    sender      text        NOT NULL, -- sealed: E.164 where known, else the chat id
    recipient   text        NOT NULL, -- sealed
    kind        text        NOT NULL, -- text, image, document, …
    content     bytea       NOT NULL, -- sealed JSON: {body, media?}
    country     text,       -- the number's country prefix, e.g. +49
    sent_at     timestamptz NOT NULL, -- normalised
    raw_sent_at text        NOT NULL, -- as WAHA wrote it
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (session_id, waha_id)
);
CREATE INDEX wa_inbound_tenant ON wa_inbound (tenant_id, id);

ALTER TABLE parked SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE lines SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- `lines.waiting` is always the number of its parked rows, whoever parks and takes out.
CREATE FUNCTION count_parked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE lines l SET waiting = l.waiting + changed.n
    FROM (SELECT line, CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END AS n FROM rows GROUP BY line ORDER BY line) changed
    WHERE l.id = changed.line;
    -- A line that is taken away at the same moment would leave rows that nobody releases.
    IF TG_OP = 'INSERT' AND EXISTS (SELECT FROM (SELECT DISTINCT line FROM rows) r WHERE NOT EXISTS (SELECT FROM lines l WHERE l.id = r.line)) THEN
        RAISE serialization_failure USING MESSAGE = 'a line of these deliveries is gone';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER parked_came AFTER INSERT ON parked REFERENCING NEW TABLE AS rows FOR EACH STATEMENT EXECUTE FUNCTION count_parked();
CREATE TRIGGER parked_went AFTER DELETE ON parked REFERENCING OLD TABLE AS rows FOR EACH STATEMENT EXECUTE FUNCTION count_parked();

-- The window in which slots are counted. A slot is taken a moment before its call reaches the provider, so the window is
-- longer than the minute by more than that moment may last: the provider never sees more than the limit in any minute.
CREATE FUNCTION slot_window() RETURNS interval LANGUAGE sql IMMUTABLE AS $$ SELECT interval '62 seconds' $$;

-- How many slots of a line can be had at a moment. In plpgsql, which keeps its plans: a claim calls it once for each line.
CREATE FUNCTION slots_free(l lines, at timestamptz) RETURNS integer LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT l.is_open OR l.blocked_until > at OR (l.gap_ms + l.jitter_ms > 0 AND l.free_at > at) THEN
        RETURN 0;
    END IF;
    RETURN greatest(0, least(
        coalesce(l.rate, 1000000) - (SELECT count(*) FROM unnest(l.slots) AS s(at_) WHERE s.at_ > at - slot_window()),
        coalesce(l.daily_cap, 1000000) - CASE WHEN l.day = (at AT TIME ZONE 'UTC')::date THEN l.day_slots ELSE 0 END,
        CASE WHEN l.gap_ms + l.jitter_ms > 0 THEN 1 ELSE 1000000 END));
END
$$;

-- Notes `n` slots of a line, which the caller has locked and read, as taken at a moment, and when it has the next one.
CREATE FUNCTION note_slots(l lines, n integer, at timestamptz, seen integer) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    today   date := (at AT TIME ZONE 'UTC')::date;
    so_far  integer := n + CASE WHEN l.day = today THEN l.day_slots ELSE 0 END;
    kept    timestamptz[] := ARRAY(SELECT s.at_ FROM unnest(l.slots) AS s(at_) WHERE s.at_ > at - slot_window() ORDER BY 1) || array_fill(at, ARRAY[n]);
    next_at timestamptz := greatest(
        l.blocked_until,
        CASE WHEN cardinality(kept) >= l.rate THEN kept[cardinality(kept) - l.rate + 1] + slot_window() END,
        CASE WHEN so_far >= l.daily_cap THEN (today + 1)::timestamp AT TIME ZONE 'UTC' END,
        CASE WHEN l.gap_ms + l.jitter_ms = 0 THEN at
             WHEN n = 0 THEN l.free_at
             ELSE at + (l.gap_ms + random() * l.jitter_ms) * interval '1 millisecond' END);
BEGIN
    UPDATE lines t SET slots = kept, day = today, day_slots = so_far, released = greatest(0, t.released - seen), free_at = next_at
    WHERE t.id = l.id;
    RETURN next_at;
END
$$;

-- Takes up to `wanted` slots of each line; strict with any number of callers, since each line is locked while it counts,
-- the tenants' before their sessions'. `asked` must be sorted and without repeats. The moment of a slot is read after its
-- line was locked.
CREATE FUNCTION take_slots(asked uuid[], wanted integer[]) RETURNS TABLE (line uuid, n integer) LANGUAGE plpgsql AS $$
DECLARE
    l       lines;
    over    lines;
    at      timestamptz;
    later   timestamptz;
    mine    integer;
    limited boolean;
BEGIN
    PERFORM 1 FROM lines t WHERE t.kind = 'tenant' AND t.tenant_id IN (SELECT s.tenant_id FROM lines s WHERE s.id = ANY (asked))
    ORDER BY t.id FOR UPDATE;
    limited := FOUND;
    FOR l IN SELECT t.* FROM lines t WHERE t.id = ANY (asked) ORDER BY t.id FOR UPDATE LOOP
        at := clock_timestamp();
        line := l.id;
        mine := wanted[array_position(asked, l.id)];
        n := least(mine, slots_free(l, at));
        over := NULL;
        IF limited THEN
            SELECT t.* INTO over FROM lines t WHERE t.kind = 'tenant' AND t.tenant_id = l.tenant_id;
        END IF;
        IF over.id IS NULL THEN
            PERFORM note_slots(l, n, at, mine);
        ELSE
            n := least(n, slots_free(over, at));
            later := note_slots(over, n, at, 0);
            PERFORM note_slots(l, n, at, mine);
            UPDATE lines SET free_at = greatest(free_at, later) WHERE id = line AND free_at < later;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
