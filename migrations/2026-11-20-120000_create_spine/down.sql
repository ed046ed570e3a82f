DROP FUNCTION ensure_partitions(integer);
DROP FUNCTION uuid7_floor(timestamptz);
DROP TABLE replays, dead_letters, inbox, outbox, due, event_counts, delivery_events, deliveries, messages, bulks, idempotency_keys, api_keys, amqp_users, tenants;
