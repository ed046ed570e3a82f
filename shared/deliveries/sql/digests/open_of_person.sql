SELECT d.rule_id, d.items, d.closes_at
FROM unnest(:rules::uuid[], :keys::text[]) AS asked(rule_id, key)
JOIN digests d ON d.tenant_id = :tenant AND d.rule_id = asked.rule_id AND d.user_id = :user_id AND d.key = asked.key
    AND d.state = 'open'
