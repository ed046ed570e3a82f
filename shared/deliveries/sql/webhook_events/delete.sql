DELETE FROM webhook_events WHERE id = ANY (:ids::int8[])
