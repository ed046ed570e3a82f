SELECT d.id, d.rule_id, d.key, d.opened_at, d.closes_at, d.message_id,
       ARRAY(SELECT i.data FROM digest_items i WHERE i.digest_id = d.id ORDER BY i.event_id LIMIT 1000) AS items
FROM digests d WHERE d.tenant_id = :tenant AND d.user_id = :user_id AND d.id < :before ORDER BY d.id DESC LIMIT :limit
