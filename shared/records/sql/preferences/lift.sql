DELETE FROM suppressions
WHERE tenant_id = :tenant AND channel = :channel AND address_hash = ANY (:prints::bytea[])
  AND scope = ANY (:scopes::text[]) AND reason = :reason
