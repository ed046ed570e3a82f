UPDATE idempotency_keys k SET response = f.new
FROM (SELECT :tenant::int4 AS tenant_id, :key_hash::bytea AS key_hash, :old::bytea AS old, :new::bytea AS new) f
WHERE k.tenant_id = f.tenant_id AND k.key_hash = f.key_hash AND k.response = f.old
