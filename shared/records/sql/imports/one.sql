SELECT i.id,
       -- An import without progress for this long has ended: its process died.
       CASE WHEN i.status = 'running' AND i.updated_at < now() - :silence_seconds::int4 * interval '1 second'
           THEN 'failed' ELSE i.status END AS status,
       i.bytes, i.rows, i.imported, i.refused, i.faults::text AS faults, i.created_at, i.updated_at
FROM imports i WHERE i.tenant_id = :tenant AND i.id = :id
