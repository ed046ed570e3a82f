INSERT INTO tenant_limits (tenant_id, http_requests_per_minute, whatsapp_per_minute)
VALUES (:tenant, :http_requests_per_minute, :whatsapp_per_minute)
ON CONFLICT (tenant_id) DO UPDATE SET http_requests_per_minute = excluded.http_requests_per_minute,
    whatsapp_per_minute = excluded.whatsapp_per_minute, updated_at = now()
