DELETE FROM webhook_logs WHERE id = ANY (ARRAY(
    SELECT id FROM webhook_logs
    WHERE created_at < now() - :days::int4 * interval '1 day'
    ORDER BY created_at LIMIT :limit))
