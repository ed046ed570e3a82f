-- The deliveries of a broadcast between two of them that wait.
SELECT d.id
FROM (SELECT :broadcast::uuid AS broadcast_id, :tenant::int4 AS tenant_id, :first::uuid AS first,
             :last::uuid AS last) asked
JOIN deliveries d ON d.id >= asked.first AND d.id <= asked.last AND d.tenant_id = asked.tenant_id
WHERE d.state IN ('scheduled', 'queued', 'retrying')
  AND EXISTS (SELECT 1 FROM messages m WHERE m.id = d.message_id AND m.bulk_id = asked.broadcast_id)
