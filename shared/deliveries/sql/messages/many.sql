-- Content beyond a few pages is left out.
SELECT m.id, m.bulk_id, m.user_id, m.category, m.priority, m.source, m.request_id, m.tenant_id,
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536
            THEN coalesce(m.content, b.content) END AS content,
       m.scheduled_at, m.expires_at, m.created_at
FROM unnest(:ids::uuid[]) AS asked(id) CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.id = asked.id OFFSET 0) m
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY m.id DESC
