-- What was parked before the column came expires as well: nothing else sets it while a delivery waits. A migration of its own,
-- because the one that adds the column locks the table against every reader until it commits.
UPDATE parked p SET expires_at = m.expires_at
FROM lines l, deliveries d, messages m
WHERE p.expires_at IS NULL AND l.kind = 'session' AND p.line = l.id AND d.id = p.delivery_id AND m.id = d.message_id
  AND m.expires_at IS NOT NULL;
