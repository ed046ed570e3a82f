INSERT INTO digests
    (id, tenant_id, rule_id, user_id, key, max_items, event_type, opened_at, closes_at, latest_at, state)
VALUES (:id, :tenant, :rule, :user_id, :key, :max_items, :event_type, :opened_at, :closes_at, :latest_at, 'open')
ON CONFLICT (tenant_id, rule_id, user_id, key) WHERE state = 'open' DO NOTHING
