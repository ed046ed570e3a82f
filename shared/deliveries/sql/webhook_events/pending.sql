SELECT w.id, w.tenant_id, w.configuration_id, c.url, c.is_active, w.event, w.at,
       w.subject, w.fact::text AS fact, w.round, d.message_id, m.source,
       -- The producer's metadata is included, unless it is inside a large content.
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536
           THEN coalesce(m.content, b.content) END AS content,
       CASE WHEN d.id IS NULL THEN 0 ELSE
           (SELECT count(*) FROM delivery_events e
            WHERE e.delivery_id = d.id AND e.run <= w.run AND e.provider IS NOT NULL) END AS attempts
FROM (SELECT * FROM webhook_events WHERE pending ORDER BY id LIMIT :limit) w
LEFT JOIN webhook_configurations c ON c.id = w.configuration_id
LEFT JOIN LATERAL (
    SELECT d.id, d.message_id FROM deliveries d WHERE w.run IS NOT NULL AND d.id = w.subject OFFSET 0) d ON true
LEFT JOIN LATERAL (
    SELECT m.source, m.content, m.bulk_id FROM messages m WHERE m.id = d.message_id OFFSET 0) m ON true
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY w.id
