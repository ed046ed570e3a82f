WITH gone AS (
    DELETE FROM inbox WHERE id = ANY (ARRAY(
        SELECT id FROM inbox WHERE tenant_id = :tenant AND user_id = :user_id LIMIT :limit)) RETURNING 1)
SELECT count(*) FROM gone
