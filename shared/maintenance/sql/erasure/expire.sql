UPDATE messages SET expires_at = least(expires_at, now()) WHERE tenant_id = :tenant AND id = ANY (:ids::uuid[])
