-- What Posthaste reports to webhook configurations. See docs/adr/0010.

-- One row for each event and configuration, written with the fact itself. A task turns pending ones into webhook deliveries;
-- those of a configuration that is switched off stay here without one, and can be replayed.
CREATE TABLE webhook_events (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id        integer     NOT NULL,
    configuration_id uuid        NOT NULL,
    event            text        NOT NULL,
    at               timestamptz NOT NULL,
    subject          uuid,       -- the delivery, dead letter, message or configuration that it is about
    run              integer,    -- of the delivery
    fact             jsonb       NOT NULL, -- what may be told: no address, no content
    pending          boolean     NOT NULL DEFAULT true,
    round            integer     NOT NULL DEFAULT 0, -- replays so far
    carrier          uuid        -- the webhook delivery that carries it; NULL and not pending: held
);
CREATE INDEX webhook_events_pending ON webhook_events (id) WHERE pending;
CREATE INDEX webhook_events_configuration ON webhook_events (configuration_id, at);
CREATE INDEX webhook_events_tenant ON webhook_events (tenant_id, at);
CREATE INDEX webhook_events_subject ON webhook_events (subject);
CREATE INDEX webhook_events_at ON webhook_events (at);
ALTER TABLE webhook_events SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Calls to the receivers of configurations.
CREATE TABLE webhook_logs (
    id               uuid        PRIMARY KEY,
    tenant_id        integer     NOT NULL,
    configuration_id uuid        NOT NULL,
    event            text,
    delivery_id      uuid        NOT NULL,
    attempt          integer     NOT NULL,
    response_status  integer,    -- NULL: no answer
    request          bytea       NOT NULL, -- sealed JSON, masked and cut off
    response         bytea,      -- sealed JSON, masked and cut off
    duration_ms      integer     NOT NULL,
    created_at       timestamptz NOT NULL
);
CREATE INDEX webhook_logs_configuration ON webhook_logs (configuration_id, id);
CREATE INDEX webhook_logs_tenant ON webhook_logs (tenant_id, created_at);
CREATE INDEX webhook_logs_delivery ON webhook_logs (delivery_id);
CREATE INDEX webhook_logs_created ON webhook_logs (created_at);

ALTER TABLE webhook_configurations
    ADD COLUMN failing_since timestamptz, -- the first failure since anything got through
    ADD COLUMN disabled_at   timestamptz,
    ADD COLUMN disabled_why  text,        -- admin, gone (it answered 410) or failing
    ADD COLUMN swept_at      timestamptz; -- when what waited for it was last taken back
CREATE INDEX webhook_configurations_updated ON webhook_configurations (updated_at);
CREATE INDEX webhook_configurations_off ON webhook_configurations (id) WHERE NOT is_active;
