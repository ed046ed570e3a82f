WITH gone AS (
    DELETE FROM dead_letters WHERE id = ANY (ARRAY(
        SELECT id FROM dead_letters WHERE delivery_id >= :low AND delivery_id < :high
        ORDER BY delivery_id LIMIT :limit))
    RETURNING 1)
SELECT count(*) FROM gone
