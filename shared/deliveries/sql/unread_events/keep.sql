INSERT INTO unread_events (id, delivery_id, run, body)
SELECT * FROM unnest(:ids::uuid[], :deliveries::uuid[], :runs::int4[], :bodies::bytea[])
