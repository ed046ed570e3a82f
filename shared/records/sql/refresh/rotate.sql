-- One statement decides: a second caller waits for the row and then sees another hash in it.
UPDATE token_families f SET
    revoked_at = CASE WHEN f.hash = :old THEN NULL ELSE now() END,
    hash = CASE WHEN f.hash = :old THEN :new ELSE f.hash END,
    expires_at = CASE WHEN f.hash = :old THEN now() + :holds ELSE f.expires_at END
FROM tenants t, api_keys k
WHERE f.id = :family AND t.id = f.tenant_id AND f.revoked_at IS NULL AND f.expires_at > now()
    AND k.id = f.key_id AND k.revoked_at IS NULL
RETURNING f.hash = :new AS is_new, t.slug AS tenant, f.subject, f.role, f.ttl_s AS ttl, k.id AS key,
    k.role AS key_role
