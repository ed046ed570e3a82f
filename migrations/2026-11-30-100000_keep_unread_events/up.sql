-- Outcomes that are known and not written down; their deliveries are not doubted. An event that the schedulers of this version cannot
-- read, since a newer worker wrote it, is kept in `body` for a newer scheduler; `delivery_id` and `run` are NULL where not even those can
-- be read. For an event that the database refuses, `body` is empty: the event is in the dead letter with the same id.
CREATE TABLE unread_events (
    id          uuid PRIMARY KEY,
    delivery_id uuid,
    run         integer,
    body        bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX unread_events_delivery ON unread_events (delivery_id);
