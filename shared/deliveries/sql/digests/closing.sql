SELECT id, tenant_id, rule_id, user_id, items, state = 'full' AS is_full, event_type, opened_at, closes_at, latest_at
FROM digests WHERE id = ANY (:ids::uuid[]) AND state <> 'closed' AND closes_at <= now()
ORDER BY id
