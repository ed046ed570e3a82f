-- The deliveries of a message that wait.
SELECT d.id
FROM (SELECT :id::uuid AS id, :tenant::int4 AS tenant_id) asked JOIN deliveries d ON d.message_id = asked.id
WHERE d.id >= asked.id
  AND d.id < (lpad(to_hex(('x' || translate(left(asked.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
              || '00000000000000000000')::uuid
  AND (asked.tenant_id IS NULL OR d.tenant_id = asked.tenant_id)
  AND d.state IN ('scheduled', 'queued', 'retrying')
