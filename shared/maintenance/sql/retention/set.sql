INSERT INTO retention (tenant_id, days) VALUES (:tenant, :days)
ON CONFLICT (tenant_id) DO UPDATE SET days = excluded.days, updated_at = now()
