-- The index leads from one tenant to the next, however many messages each has.
WITH RECURSIVE t(id) AS (
    (SELECT m.tenant_id FROM messages@ m WHERE m.tenant_id > :after ORDER BY m.tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT m.tenant_id FROM messages@ m WHERE m.tenant_id > t.id ORDER BY m.tenant_id LIMIT 1)
    FROM t WHERE t.id IS NOT NULL)
SELECT id FROM t WHERE id IS NOT NULL
