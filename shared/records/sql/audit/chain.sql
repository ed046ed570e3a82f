SELECT id, tenant_id, (extract(epoch FROM at) * 1000000)::bigint AS micros, actor, action, target, request_id,
       prev_hash, hash
FROM audit_entries WHERE id > :after ORDER BY id LIMIT :limit
