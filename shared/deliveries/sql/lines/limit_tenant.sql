INSERT INTO lines (id, tenant_id, kind, route, rate) VALUES (gen_random_uuid(), :tenant, 'tenant', 'whatsapp', :rate)
ON CONFLICT (tenant_id) WHERE kind = 'tenant' DO UPDATE SET rate = excluded.rate
