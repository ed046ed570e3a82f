WITH echo AS (SELECT :provider::text AS provider, :provider_ref::text AS ref
), alike AS MATERIALIZED (
    SELECT h.delivery_id, h.chat_hash, h.at FROM holds h
    WHERE h.session_id = :session AND h.echo IS NULL AND h.body_hash = ANY (:body_hashes::bytea[])
      AND NOT EXISTS (SELECT 1 FROM provider_refs r JOIN echo e ON r.provider = e.provider AND r.ref = e.ref)
), meant AS MATERIALIZED (
    SELECT a.delivery_id FROM alike a CROSS JOIN (SELECT :chat_hashes::bytea[] AS hashes) chat
    WHERE CASE WHEN chat.hashes IS NULL THEN (SELECT count(*) FROM alike) = 1 ELSE a.chat_hash = ANY (chat.hashes) END
), found AS MATERIALIZED (
    -- Of calls with the same text, the oldest first: echoes come in the order of the calls.
    SELECT h.delivery_id FROM holds h
    WHERE h.delivery_id = ANY (ARRAY(SELECT delivery_id FROM meant)) AND h.echo IS NULL
    ORDER BY h.at LIMIT 1 FOR UPDATE SKIP LOCKED
), matched AS (
    UPDATE holds h SET echo = e.ref FROM echo e WHERE h.delivery_id IN (SELECT delivery_id FROM found)
    RETURNING h.delivery_id, h.tenant_id, h.run
), named AS (
    INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
    SELECT e.provider, e.ref, m.delivery_id, m.tenant_id FROM matched m CROSS JOIN echo e
    ON CONFLICT DO NOTHING
)
SELECT d.tenant_id, d.id AS delivery_id, d.run, d.channel
FROM matched m JOIN deliveries d ON d.id = m.delivery_id AND d.run = m.run
WHERE d.state IN ('retrying', 'queued')
