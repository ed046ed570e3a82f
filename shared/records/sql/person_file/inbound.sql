SELECT id, kind, content, sent_at FROM wa_inbound
WHERE tenant_id = :tenant AND chat_hash = ANY (:prints::bytea[]) AND id < :before ORDER BY id DESC LIMIT :limit
