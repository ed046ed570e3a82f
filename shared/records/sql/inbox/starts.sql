SELECT COALESCE(
    CASE WHEN w.from_now
    THEN (SELECT b.last_seq FROM inboxes b WHERE b.tenant_id = w.tenant_id AND b.user_id = w.user_id)
    ELSE COALESCE(
        (SELECT i.seq FROM inbox i WHERE i.id = w.since AND i.tenant_id = w.tenant_id AND i.user_id = w.user_id),
        (SELECT i.seq FROM inbox i
         WHERE i.tenant_id = w.tenant_id AND i.user_id = w.user_id AND i.archived_at IS NULL
         ORDER BY i.seq DESC OFFSET f.newest LIMIT 1)) END, -1)
FROM unnest(:tenant::int4[], :user_id::text[], :since::uuid[], :from_now::bool[])
    WITH ORDINALITY AS w(tenant_id, user_id, since, from_now, place)
CROSS JOIN (SELECT :newest::int8 AS newest) f
ORDER BY w.place
