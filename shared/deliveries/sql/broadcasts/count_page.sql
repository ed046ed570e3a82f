-- The younger a page, the sooner it is counted again. For three days, sent deliveries may still arrive or bounce, and
-- dead ones be replayed. If rows were removed by retention, the earlier counts stay.
UPDATE broadcast_pages p
SET waiting = c.waiting, sent = c.sent, delivered = c.delivered, failed = c.failed, suppressed = c.suppressed,
    cancelled = c.cancelled, count_at = c.count_at
FROM (
    SELECT q.broadcast_id, q.no, s.n = q.accepted AS is_whole,
           CASE WHEN s.n = q.accepted THEN s.waiting ELSE q.waiting END AS waiting,
           CASE WHEN s.n = q.accepted THEN s.sent ELSE q.sent END AS sent,
           CASE WHEN s.n = q.accepted THEN s.delivered ELSE q.delivered END AS delivered,
           CASE WHEN s.n = q.accepted THEN s.failed ELSE q.failed END AS failed,
           CASE WHEN s.n = q.accepted THEN s.suppressed ELSE q.suppressed END AS suppressed,
           CASE WHEN s.n = q.accepted THEN s.cancelled ELSE q.cancelled END AS cancelled,
           CASE WHEN s.n = q.accepted
                     AND (s.waiting > 0 OR (s.sent + s.dead > 0 AND q.created_at > now() - interval '3 days'))
                THEN now() + greatest(interval '5 seconds', (now() - q.created_at) / 4) END AS count_at
    FROM (SELECT :broadcast::uuid AS broadcast_id, :no::int4 AS no) f
    JOIN broadcast_pages q ON q.broadcast_id = f.broadcast_id AND q.no = f.no
    CROSS JOIN LATERAL (
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
        WHERE d.id >= q.first AND d.id <= q.last AND d.tenant_id = q.tenant_id
          AND EXISTS (SELECT 1 FROM messages@ m WHERE m.id = d.message_id AND m.bulk_id = q.broadcast_id)) s) c
WHERE p.broadcast_id = c.broadcast_id AND p.no = c.no
