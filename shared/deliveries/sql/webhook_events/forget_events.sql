DELETE FROM webhook_events WHERE id = ANY (ARRAY(
    SELECT id FROM webhook_events
    WHERE at < now() - :days::int4 * interval '1 day' AND NOT pending
    ORDER BY at LIMIT :limit))
