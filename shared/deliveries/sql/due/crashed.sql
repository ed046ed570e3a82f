-- A claim whose outcome is known (`unread_events`) has not crashed. Its watch is set again until its outcome is
-- recorded or given up. The day of its message may be dropped already: without its expiry, the crash is reported all the
-- same.
WITH picked AS MATERIALIZED (
    SELECT w.delivery_id, d.state = 'sending' AND d.run = w.run AS held,
           d.lease_until + :grace_ms::int4 * interval '1 millisecond' AS doubted_at,
           EXISTS (SELECT FROM unread_events u WHERE u.delivery_id = w.delivery_id AND u.run = w.run) AS is_known
    FROM (
        SELECT * FROM due WHERE due_at <= now() AND why = 'watch' ORDER BY due_at LIMIT :limit
        FOR UPDATE SKIP LOCKED) w
    LEFT JOIN deliveries d ON d.id = w.delivery_id
), gone AS (
    DELETE FROM due WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM picked WHERE held IS NOT TRUE))
), again AS (
    UPDATE due u SET due_at = CASE WHEN p.is_known THEN now() + interval '1 minute'
                                   WHEN p.doubted_at > now() THEN p.doubted_at
                                   ELSE now() + p.again END
    FROM (SELECT *, :again_ms::int4 * interval '1 millisecond' AS again FROM picked WHERE held) p
    WHERE u.delivery_id = p.delivery_id
)
SELECT d.id, d.run, d.tenant_id, d.channel, d.attempts, d.deferrals, d.crashes, d.provider, m.expires_at,
       p.doubted_at <= now() AS is_late
FROM picked p JOIN deliveries d ON d.id = p.delivery_id LEFT JOIN messages m ON m.id = d.message_id
WHERE p.held AND NOT p.is_known
