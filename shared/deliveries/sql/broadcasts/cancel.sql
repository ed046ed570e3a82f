-- The pages of the broadcast are due now: their waiting deliveries are cancelled.
WITH ended AS (
    UPDATE broadcasts SET status = 'cancelled', after_user = '', updated_at = now(), finished_at = now()
    WHERE tenant_id = :tenant AND id = :id AND status IN ('scheduled', 'running', 'paused')
    RETURNING id, definition
), hurried AS (
    UPDATE broadcast_pages p SET count_at = now() FROM ended WHERE p.broadcast_id = ended.id AND p.count_at IS NOT NULL
)
SELECT definition FROM ended
