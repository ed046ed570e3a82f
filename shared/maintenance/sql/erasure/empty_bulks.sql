WITH emptied AS (
    UPDATE bulks b SET content = f.blank
    FROM (SELECT :tenant::int4 AS tenant_id, :ids::uuid[] AS ids, :blank::bytea AS blank) f
    WHERE b.id = ANY (f.ids) AND b.tenant_id = f.tenant_id
      -- Another person needs the content as long as a message of the bulk has none of its own.
      AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.bulk_id = b.id AND m.content IS NULL)
    RETURNING 1)
SELECT count(*) FROM emptied
