WITH ended AS (SELECT * FROM unnest(:ids::uuid[], :messages::uuid[]) AS e(id, message_id)
), gone AS (
    -- The message holds the collected items now.
    DELETE FROM digest_items i USING ended e WHERE i.digest_id = e.id
)
UPDATE digests d SET state = 'closed', message_id = e.message_id, closes_at = now() FROM ended e WHERE d.id = e.id
