SELECT m.id, m.bulk_id, m.user_id, m.category, m.priority, m.source, m.request_id,
       m.tenant_id, coalesce(m.content, b.content) AS content, m.scheduled_at, m.expires_at, m.created_at
FROM messages m LEFT JOIN bulks b ON b.id = m.bulk_id
WHERE m.id = :id AND m.tenant_id = coalesce(:tenant, m.tenant_id)
