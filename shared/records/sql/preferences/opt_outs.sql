SELECT channel, scope, reason, created_at FROM suppressions
WHERE tenant_id = :tenant AND address_hash = ANY (:prints::bytea[]) ORDER BY id
