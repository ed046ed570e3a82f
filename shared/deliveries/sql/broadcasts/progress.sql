-- Without a next page the broadcast has ended, and its total is the number of people with a message.
WITH f AS (
    SELECT :next::text AS next, :told::int8 AS told, :accepted::int4 AS accepted, :first::uuid AS first,
           :last::uuid AS last, :id::uuid AS id
), moved AS (
    UPDATE broadcasts b
    SET after_user = coalesce(f.next, ''), told = b.told + f.told, accepted = b.accepted + f.accepted,
        pages = b.pages + (f.accepted > 0)::int, updated_at = now(),
        status = CASE WHEN f.next IS NULL THEN 'completed' ELSE b.status END,
        finished_at = CASE WHEN f.next IS NULL THEN now() END,
        total = CASE WHEN f.next IS NULL THEN b.told + f.told ELSE b.total END
    FROM f WHERE b.id = f.id
    RETURNING b.id, b.tenant_id, b.pages
)
INSERT INTO broadcast_pages (broadcast_id, no, tenant_id, first, last, accepted, waiting, count_at)
SELECT moved.id, moved.pages, moved.tenant_id, f.first, f.last, f.accepted, f.accepted, now() + interval '5 seconds'
FROM moved, f WHERE f.accepted > 0
