-- A broadcast with its last counts. If few pages may still change, they are counted now.
SELECT b.id, b.definition, b.status, b.scheduled_at, b.total, b.told, b.accepted, b.created_at, b.updated_at,
       b.finished_at, c.waiting, c.sent, c.delivered, c.failed, c.suppressed, c.cancelled
FROM (SELECT :tenant::int4 AS tenant_id, :id::uuid AS id, :live_pages::int4 AS live_pages) f
JOIN broadcasts b ON b.id = f.id AND b.tenant_id = f.tenant_id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(CASE WHEN s.n = p.accepted THEN s.waiting ELSE p.waiting END), 0)::int8 AS waiting,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.sent ELSE p.sent END), 0)::int8 AS sent,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.delivered ELSE p.delivered END), 0)::int8 AS delivered,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.failed ELSE p.failed END), 0)::int8 AS failed,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.suppressed ELSE p.suppressed END), 0)::int8 AS suppressed,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.cancelled ELSE p.cancelled END), 0)::int8 AS cancelled
    FROM broadcast_pages p LEFT JOIN LATERAL (
        -- The states of the page's deliveries: those between its first and its last that belong to the broadcast.
        SELECT count(*)::int4 AS n,
               count(*) FILTER (WHERE d.state IN ('scheduled', 'queued', 'sending', 'retrying'))::int4 AS waiting,
               count(*) FILTER (WHERE d.state = 'sent')::int4 AS sent,
               count(*) FILTER (WHERE d.state = 'delivered')::int4 AS delivered,
               count(*) FILTER (WHERE d.state IN ('failed', 'bounced', 'dead', 'expired'))::int4 AS failed,
               count(*) FILTER (WHERE d.state = 'dead')::int4 AS dead,
               count(*) FILTER (WHERE d.state = 'suppressed')::int4 AS suppressed,
               count(*) FILTER (WHERE d.state = 'cancelled')::int4 AS cancelled
        FROM deliveries@ d
        WHERE d.id >= p.first AND d.id <= p.last AND d.tenant_id = p.tenant_id
          AND EXISTS (SELECT 1 FROM messages@ m WHERE m.id = d.message_id AND m.bulk_id = p.broadcast_id)
          AND p.count_at IS NOT NULL AND b.pages <= f.live_pages) s ON true
    WHERE p.broadcast_id = b.id) c
