-- A message's id is less than a minute after its bulk's, and a delivery's less than a minute after its message's.
SELECT b.refused, b.created_at, d.state, count(d.id) AS count
FROM bulks b
LEFT JOIN messages m ON m.bulk_id = b.id AND m.id >= b.id
    AND m.id < (lpad(to_hex(('x' || translate(left(b.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                || '00000000000000000000')::uuid
LEFT JOIN deliveries d ON d.message_id = m.id AND d.id >= m.id
    AND d.id < (lpad(to_hex(('x' || translate(left(m.id::text, 13), '-', ''))::bit(48)::bigint + 60000), 12, '0')
                || '00000000000000000000')::uuid
WHERE b.id = :id AND b.tenant_id = coalesce(:tenant, b.tenant_id)
GROUP BY b.refused, b.created_at, d.state
