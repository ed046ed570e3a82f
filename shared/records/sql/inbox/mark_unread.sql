UPDATE inbox SET read_at = NULL
WHERE tenant_id = :tenant AND user_id = :user_id AND id = ANY (:ids::uuid[]) AND read_at IS NOT NULL
