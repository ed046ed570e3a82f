SELECT s.id, s.tenant_id, s.name, s.base_url, s.api_key, s.webhook_secret, s.previous_secret, s.previous_until,
       s.signature, s.allow_ips, s.on_limit, s.state, s.state_at, s.is_wanted, s.last_event_at, s.checked_at,
       s.fetched_until, s.created_at, s.updated_at, s.hook_url, s.unreachable_since, s.needs_fetch, s.is_operators,
       l.rate, l.daily_cap, l.gap_ms, l.jitter_ms
FROM wa_sessions s LEFT JOIN lines l ON l.id = s.id
WHERE s.id = :id
