SELECT l.id, l.body FROM dead_letters l
WHERE l.tenant_id = :tenant AND l.id > :after AND l.body IS NOT NULL
ORDER BY l.id LIMIT :limit
