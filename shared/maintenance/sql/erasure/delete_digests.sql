WITH theirs AS MATERIALIZED (
    SELECT id FROM digests WHERE tenant_id = :tenant AND user_id = :user_id AND opened_at <= :asked_at LIMIT :limit
), items AS (DELETE FROM digest_items i USING theirs t WHERE i.digest_id = t.id
), gone AS (DELETE FROM digests d USING theirs t WHERE d.id = t.id RETURNING 1)
SELECT count(*) FROM gone
