SELECT http_requests_per_minute, whatsapp_per_minute FROM tenant_limits WHERE tenant_id = :tenant
