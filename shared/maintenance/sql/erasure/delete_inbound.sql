WITH gone AS (
    DELETE FROM wa_inbound WHERE tenant_id = :tenant AND chat_hash = ANY (:hashes::bytea[]) RETURNING id)
SELECT id FROM gone
