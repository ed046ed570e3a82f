SELECT tenant_id, http_requests_per_minute FROM tenant_limits WHERE http_requests_per_minute IS NOT NULL
