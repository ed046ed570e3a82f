SELECT m.id AS message, d.id AS delivery, d.line AS session, d.recipient, d.state,
       EXISTS (SELECT 1 FROM delivery_events e WHERE e.delivery_id = d.id AND e.kind IN ('read', 'played')) AS is_read,
       d.kind, m.priority,
       -- Larger contents (files) are not read for a list.
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= :content_bytes_max
           THEN coalesce(m.content, b.content) END AS content,
       m.created_at, d.updated_at, m.scheduled_at
FROM messages m
JOIN deliveries d ON d.message_id = m.id AND d.line IS NOT NULL
LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE m.id = :message AND m.tenant_id = :tenant
