UPDATE inbox SET read_at = now()
WHERE tenant_id = :tenant AND user_id = :user_id AND id = ANY (:ids::uuid[]) AND read_at IS NULL
RETURNING id
