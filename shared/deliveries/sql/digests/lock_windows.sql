-- Locks in the order of `gather.sql`.
SELECT 1
FROM unnest(:tenants::int4[], :rules::uuid[], :users::text[], :keys::text[]) WITH ORDINALITY
    AS g(tenant_id, rule_id, user_id, key, place)
JOIN digests d ON d.tenant_id = g.tenant_id AND d.rule_id = g.rule_id AND d.user_id = g.user_id AND d.key = g.key
    AND d.state = 'open'
ORDER BY g.place FOR UPDATE OF d
