SELECT count(*) FROM (
    SELECT FROM due
    WHERE why = 'watch' AND due_at <= now() + :soon_ms::int4 * interval '1 millisecond' LIMIT :at_most) w
