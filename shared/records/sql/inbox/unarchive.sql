UPDATE inbox SET archived_at = NULL
WHERE tenant_id = :tenant AND user_id = :user_id AND id = ANY (:ids::uuid[]) AND archived_at IS NOT NULL
