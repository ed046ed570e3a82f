DELETE FROM imports WHERE id = ANY (ARRAY(
    SELECT id FROM imports WHERE created_at < now() - :days::int4 * interval '1 day' LIMIT :limit))
