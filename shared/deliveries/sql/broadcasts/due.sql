WITH taken AS (
    UPDATE broadcast_pages SET count_at = now() + interval '10 seconds'
    WHERE (broadcast_id, no) IN (
        SELECT broadcast_id, no FROM broadcast_pages WHERE count_at <= now() ORDER BY count_at LIMIT :limit
        FOR UPDATE SKIP LOCKED)
    RETURNING broadcast_id, no, tenant_id, first, last
)
SELECT t.broadcast_id, t.no, t.tenant_id, t.first, t.last, b.status = 'cancelled' AS is_cancelled
FROM taken t JOIN broadcasts b ON b.id = t.broadcast_id
