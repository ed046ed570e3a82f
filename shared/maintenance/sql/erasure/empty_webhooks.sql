UPDATE waha_events w SET body = f.blank, status = CASE w.status WHEN 'pending' THEN 'ignored' ELSE w.status END
FROM (SELECT :tenant::int4 AS tenant_id, :ids::uuid[] AS ids, :blank::bytea AS blank) f
WHERE w.tenant_id = f.tenant_id AND w.id = ANY (f.ids)
