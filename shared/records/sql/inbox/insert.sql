WITH clock AS MATERIALIZED (SELECT (extract(epoch FROM now()) * 1000)::int8 AS begin
), given AS MATERIALIZED (
    -- A row that exists takes no number.
    SELECT g.* FROM unnest(:id::uuid[], :tenant::int4[], :user_id::text[], :content::bytea[], :kind::text[],
                           :category::text[])
        WITH ORDINALITY AS g(id, tenant_id, user_id, content, kind, category, place)
    WHERE NOT EXISTS (SELECT 1 FROM inbox i WHERE i.id = g.id)
), numbered AS MATERIALIZED (
    SELECT g.*, row_number() OVER (PARTITION BY g.tenant_id, g.user_id ORDER BY g.place DESC) - 1 AS from_end
    FROM given g
), taken AS (
    -- The persons are locked in one order, so that two batches cannot deadlock.
    INSERT INTO inboxes AS b (tenant_id, user_id, last_seq)
    SELECT g.tenant_id, g.user_id, c.begin + count(*) FROM given g CROSS JOIN clock c
    GROUP BY g.tenant_id, g.user_id, c.begin ORDER BY g.tenant_id, g.user_id
    ON CONFLICT (tenant_id, user_id)
        DO UPDATE SET last_seq = b.last_seq + excluded.last_seq - (SELECT c.begin FROM clock c)
    RETURNING b.tenant_id, b.user_id, b.last_seq
)
INSERT INTO inbox (id, tenant_id, user_id, content, kind, category, seq)
SELECT n.id, n.tenant_id, n.user_id, n.content, n.kind, n.category, t.last_seq - n.from_end
FROM taken t JOIN numbered n ON n.tenant_id = t.tenant_id AND n.user_id = t.user_id
ORDER BY n.tenant_id, n.user_id, n.place
ON CONFLICT (id) DO NOTHING
