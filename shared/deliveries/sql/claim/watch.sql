INSERT INTO due (delivery_id, due_at, run, why)
SELECT d.id, greatest(d.lease_until, now()), d.run, 'watch'
FROM unnest(:ids::uuid[], :runs::int4[]) AS h(id, run) JOIN deliveries@ d ON d.id = h.id
WHERE d.run = h.run + 1 AND d.state = 'sending' ORDER BY d.id
ON CONFLICT (delivery_id) DO NOTHING
