-- Events that the schedulers of this version cannot read, since a newer worker wrote them: they wait for a newer scheduler.
-- `delivery_id` and `run` are NULL where not even those can be read.
CREATE TABLE unread_events (
    id          uuid PRIMARY KEY,
    delivery_id uuid,
    run         integer,
    body        bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX unread_events_delivery ON unread_events (delivery_id);
