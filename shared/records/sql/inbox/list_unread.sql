-- A page of the unread items of an inbox that are not archived.
SELECT i.id, i.seq, i.content, i.read_at, i.created_at
FROM (SELECT :is_read::bool AS is_read, :is_archived::bool AS is_archived, :kind::text AS kind,
             :category::text AS category) f
CROSS JOIN inbox i
WHERE i.tenant_id = :tenant AND i.user_id = :user_id AND i.seq < :before
  AND (f.kind IS NULL OR i.kind = f.kind) AND (f.category IS NULL OR i.category = f.category)
  AND (f.is_read IS NULL OR (i.read_at IS NOT NULL) = f.is_read)
  AND (f.is_archived IS NULL OR (i.archived_at IS NOT NULL) = f.is_archived)
  -- This repeats the filter in the form of the index of unread items, so that few among many are found at once.
  AND i.read_at IS NULL AND i.archived_at IS NULL
ORDER BY i.seq DESC LIMIT :limit
