SELECT id, tenant_id, session_id, waha_id, sender, recipient, kind, content, country, sent_at, raw_sent_at, created_at
FROM wa_inbound
WHERE tenant_id = :tenant AND id < :before AND session_id = coalesce(:session, session_id)
  AND created_at >= coalesce(:from::timestamptz, '-infinity') AND created_at < coalesce(:to::timestamptz, 'infinity')
  AND chat_hash = ANY (:chat_hashes::bytea[])
ORDER BY id DESC LIMIT :limit OFFSET :skip
