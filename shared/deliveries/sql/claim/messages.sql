SELECT m.id, m.user_id, coalesce(m.content, b.content) AS content, m.created_at AS accepted_at, m.expires_at,
       m.request_id, m.traceparent
FROM messages@ m LEFT JOIN bulks b ON b.id = m.bulk_id WHERE m.id = ANY (:ids::uuid[])
