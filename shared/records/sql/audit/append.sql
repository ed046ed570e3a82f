SELECT audit_append(:tenant, :actor, :action, :target, :request_id)
