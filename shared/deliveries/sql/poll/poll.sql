-- Each part is one look-up at the low end of an index of waiting rows only. The parts are in the order of
-- `WorkKind::ALL`, as the floors are.
SELECT now() AS now, ARRAY[
    (SELECT due_at FROM due WHERE why <> 'watch' AND due_at >= f.at[1] ORDER BY due_at LIMIT 1),
    (SELECT due_at FROM due WHERE why = 'watch' AND due_at >= f.at[2] ORDER BY due_at LIMIT 1),
    (SELECT greatest(now() - interval '1 day', least(free_at, now() + interval '1 day')) FROM lines
     WHERE is_waiting AND is_open AND kind = 'session' ORDER BY free_at LIMIT 1),
    CASE WHEN EXISTS (SELECT FROM lines WHERE is_waiting AND kind = 'share') THEN now() END,
    (SELECT due_at FROM waha_events WHERE status = 'pending' AND due_at >= f.at[5] ORDER BY due_at LIMIT 1),
    (SELECT due_at FROM provider_events WHERE status = 'pending' AND due_at >= f.at[6] ORDER BY due_at LIMIT 1),
    CASE WHEN EXISTS (SELECT FROM webhook_events WHERE pending)
              OR EXISTS (SELECT FROM wa_inbound WHERE NOT is_forwarded) THEN now() END,
    CASE WHEN EXISTS (SELECT FROM broadcasts WHERE status = 'running') THEN now()
         ELSE (SELECT scheduled_at FROM broadcasts WHERE status = 'scheduled' ORDER BY scheduled_at LIMIT 1) END,
    (SELECT count_at FROM broadcast_pages WHERE count_at >= f.at[9] ORDER BY count_at LIMIT 1),
    (SELECT closes_at FROM digests WHERE state <> 'closed' AND closes_at >= f.at[10] ORDER BY closes_at LIMIT 1),
    CASE WHEN EXISTS (SELECT FROM replays WHERE status = 'running') THEN now() END,
    (SELECT act_at FROM outbox WHERE published_at IS NULL AND act_at >= f.at[12] ORDER BY act_at LIMIT 1)
] AS due FROM (SELECT :floors::timestamptz[] AS at) f
