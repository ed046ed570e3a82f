DROP INDEX waha_events_tenant;
