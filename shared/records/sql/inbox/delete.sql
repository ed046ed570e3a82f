DELETE FROM inbox WHERE tenant_id = :tenant AND user_id = :user_id AND id = ANY (:ids::uuid[])
