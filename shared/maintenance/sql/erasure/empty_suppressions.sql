UPDATE suppressions SET address = NULL, delivery_id = NULL
WHERE tenant_id = :tenant AND address_hash = ANY (:hashes::bytea[])
