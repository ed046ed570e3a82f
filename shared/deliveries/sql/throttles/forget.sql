DELETE FROM throttles WHERE (rule_id, user_id) IN (
    SELECT rule_id, user_id FROM throttles WHERE until < now()
    ORDER BY until LIMIT :limit FOR UPDATE SKIP LOCKED)
