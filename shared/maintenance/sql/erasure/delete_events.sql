WITH gone AS (
    DELETE FROM event_log WHERE id = ANY (ARRAY(
        SELECT id FROM event_log WHERE tenant_id = :tenant AND user_id = :user_id AND created_at <= :asked_at
        LIMIT :limit)) RETURNING 1)
SELECT count(*) FROM gone
