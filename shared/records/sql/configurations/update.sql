UPDATE webhook_configurations c
SET name = x.name, url = x.url, events = x.events, headers = x.headers, is_active = x.is_active,
    updated_at = clock_timestamp(), failing_since = CASE WHEN c.is_active THEN c.failing_since END,
    disabled_at = CASE WHEN NOT x.is_active THEN coalesce(c.disabled_at, now()) END,
    disabled_why = CASE WHEN NOT x.is_active THEN coalesce(c.disabled_why, 'admin') END,
    swept_at = CASE WHEN NOT x.is_active THEN c.swept_at END
FROM (SELECT :name::text AS name, :url::text AS url, :events::text[] AS events, :headers::bytea AS headers,
             :is_active::bool AS is_active) x
WHERE c.tenant_id = :tenant AND c.id = :id
