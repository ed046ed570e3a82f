-- The fence keeps the planner from walking the messages in their order in search of a rare recipient.
SELECT m.id
FROM (SELECT DISTINCT d.message_id FROM (
        SELECT :hashes::bytea[] AS hashes, :low::uuid AS low, :high::uuid AS high, :status::text AS status,
               :channel::text AS channel) f
      JOIN deliveries d ON d.recipient_hash = ANY (f.hashes)
      WHERE d.message_id >= f.low AND d.message_id < f.high
        AND (f.status IS NULL OR d.state = f.status) AND (f.channel IS NULL OR d.channel = f.channel)) x
JOIN messages m ON m.id = x.message_id
CROSS JOIN (SELECT :user_id::text AS user_id) u
WHERE u.user_id IS NULL OR m.user_id = u.user_id
ORDER BY m.id DESC LIMIT :limit
