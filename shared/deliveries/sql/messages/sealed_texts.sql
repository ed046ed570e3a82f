-- The content that a search decrypts. Content beyond a few pages is not searched.
SELECT m.id, m.tenant_id,
       CASE WHEN octet_length(coalesce(m.content, b.content)) <= 65536
            THEN coalesce(m.content, b.content) END AS content,
       ARRAY(SELECT d.recipient FROM deliveries d
             WHERE d.message_id = m.id AND d.id >= m.id
               AND d.id < (
                   lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                   || '00000000000000000000')::uuid) AS recipients
FROM unnest(:ids::uuid[]) AS asked(id) CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.id = asked.id OFFSET 0) m
LEFT JOIN bulks b ON b.id = m.bulk_id
ORDER BY m.id DESC
