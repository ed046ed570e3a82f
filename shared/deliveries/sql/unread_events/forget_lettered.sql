WITH page AS MATERIALIZED (
    SELECT id, delivery_id, run, created_at FROM unread_events WHERE id > :after AND body = '' ORDER BY id LIMIT :limit
), gone AS (
    DELETE FROM unread_events WHERE id = ANY (ARRAY(
        SELECT p.id FROM page p
        WHERE NOT EXISTS (
                SELECT FROM deliveries d WHERE d.id = p.delivery_id AND d.run = p.run AND d.state = 'sending')
           OR EXISTS (SELECT FROM dead_letters l WHERE l.id = p.id AND l.status = 'dropped')
           -- A dead letter that is not written yet is still on its way through the broker.
           OR (p.created_at < now() - interval '3 days' AND NOT EXISTS (SELECT FROM dead_letters l WHERE l.id = p.id))))
    RETURNING 1)
SELECT ARRAY(SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
       (SELECT count(*) FROM page) - (SELECT count(*) FROM gone) AS remaining
