SELECT slots_free(l, now()) - l.waiting
           - CASE WHEN l.released_at > now() - interval '30 seconds' THEN l.released ELSE 0 END AS room,
       greatest(1, extract(epoch FROM greatest(
           now(), l.blocked_until,
           CASE WHEN l.rate <= cardinality(l.slots)
                THEN l.slots[cardinality(l.slots) - l.rate + 1] + slot_window() END,
           least(l.free_at, now() + interval '1 day')) - now()))::float8 AS seconds
FROM lines l WHERE l.id = :line
