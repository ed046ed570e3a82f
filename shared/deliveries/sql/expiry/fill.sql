WITH page AS MATERIALIZED (
    SELECT delivery_id, line, expires_at FROM parked WHERE delivery_id > :after ORDER BY delivery_id LIMIT :limit
), missing AS MATERIALIZED (
    -- Rows that another transaction holds are left out: their deliveries are being released.
    SELECT p.delivery_id FROM parked p
    WHERE p.delivery_id = ANY (ARRAY(
        SELECT g.delivery_id FROM page g JOIN lines l ON l.id = g.line JOIN deliveries d ON d.id = g.delivery_id
        JOIN messages m ON m.id = d.message_id
        WHERE g.expires_at IS NULL AND l.kind = 'session' AND m.expires_at IS NOT NULL))
    ORDER BY p.delivery_id FOR UPDATE SKIP LOCKED
), filled AS (
    UPDATE parked p SET expires_at = m.expires_at
    FROM missing x JOIN deliveries d ON d.id = x.delivery_id JOIN messages m ON m.id = d.message_id
    WHERE p.delivery_id = x.delivery_id
)
SELECT ARRAY(SELECT delivery_id FROM page ORDER BY delivery_id DESC LIMIT 1) AS last
