UPDATE lines l SET blocked_until = greatest(l.blocked_until, w.until), free_at = greatest(l.free_at, w.until)
FROM (SELECT :line::uuid AS id, now() + :wait_ms::int4 * interval '1 millisecond' AS until) w WHERE l.id = w.id
