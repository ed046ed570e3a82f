INSERT INTO wa_inbound (id, tenant_id, session_id, waha_id, chat_hash, sender, recipient, kind, content, country,
                        sent_at, raw_sent_at)
SELECT *
FROM unnest(:ids::uuid[], :tenants::int4[], :sessions::uuid[], :waha_ids::text[], :chat_hashes::bytea[],
            :senders::text[], :recipients::text[], :kinds::text[], :contents::bytea[], :countries::text[],
            :sent_at::timestamptz[], :raw_sent_at::text[])
ON CONFLICT (session_id, waha_id) DO NOTHING
