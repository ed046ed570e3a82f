SELECT k.key_hash, k.response
FROM (SELECT :tenant::int4 AS tenant_id, :bulks::uuid[] AS ids) f JOIN bulks b ON b.id = ANY (f.ids)
-- A bulk and its key come from one commit, so they have one time, which is indexed.
JOIN idempotency_keys k ON k.created_at = b.created_at AND k.subject = b.id
WHERE k.tenant_id = f.tenant_id
