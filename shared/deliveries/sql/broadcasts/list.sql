-- Broadcasts with their last counts, newest first.
SELECT b.id, b.definition, b.status, b.scheduled_at, b.total, b.told, b.accepted, b.created_at, b.updated_at,
       b.finished_at, c.waiting, c.sent, c.delivered, c.failed, c.suppressed, c.cancelled
FROM (
    SELECT b.* FROM (SELECT :tenant::int4 AS tenant_id, :before::uuid AS before) f CROSS JOIN broadcasts b
    WHERE b.tenant_id = f.tenant_id AND b.id < f.before ORDER BY b.id DESC LIMIT :limit) b
CROSS JOIN LATERAL (
    SELECT coalesce(sum(p.waiting), 0)::int8 AS waiting, coalesce(sum(p.sent), 0)::int8 AS sent,
           coalesce(sum(p.delivered), 0)::int8 AS delivered, coalesce(sum(p.failed), 0)::int8 AS failed,
           coalesce(sum(p.suppressed), 0)::int8 AS suppressed, coalesce(sum(p.cancelled), 0)::int8 AS cancelled
    FROM broadcast_pages p WHERE p.broadcast_id = b.id) c
ORDER BY b.id DESC
