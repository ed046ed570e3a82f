SELECT w.place, i.id, i.seq, i.content, i.read_at, i.created_at
FROM unnest(:tenant::int4[], :user_id::text[], :after::int8[])
    WITH ORDINALITY AS w(tenant_id, user_id, after, place)
CROSS JOIN (SELECT :limit::int8 AS most) f
CROSS JOIN LATERAL (
    SELECT i.id, i.seq, i.content, i.read_at, i.created_at FROM inbox i
    WHERE i.tenant_id = w.tenant_id AND i.user_id = w.user_id AND i.seq > w.after AND i.archived_at IS NULL
    ORDER BY i.seq LIMIT f.most
) i
ORDER BY w.place, i.seq
