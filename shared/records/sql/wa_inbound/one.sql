SELECT id, tenant_id, session_id, waha_id, sender, recipient, kind, content, country, sent_at, raw_sent_at, created_at
FROM wa_inbound
WHERE tenant_id = :tenant AND id = :id
