INSERT INTO replays (id, tenant_id, action, filter, actor, note, rate, matched)
VALUES (:id, :tenant, :action, :filter, :actor, :note, :rate, :matched)
