WITH s AS (
    INSERT INTO wa_sessions (id, tenant_id, name, base_url, api_key, webhook_secret, signature, allow_ips, on_limit,
                             is_operators)
    VALUES (:id, :tenant, :name, :base_url, :api_key, :webhook_secret, :signature, :allow_ips, :on_limit,
            :tenant = (SELECT min(id) FROM tenants))
    RETURNING id, tenant_id, state
), l AS (
    INSERT INTO lines (id, tenant_id, kind, route, is_open, rate, daily_cap, gap_ms, jitter_ms)
    SELECT id, tenant_id, 'session', 'whatsapp', state = :working, :rate, :daily_cap, :gap_ms, :jitter_ms FROM s
)
SELECT id FROM s
