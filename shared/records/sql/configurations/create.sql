INSERT INTO webhook_configurations (name, url, events, headers, is_active, id, tenant_id, secret, updated_at,
                                    disabled_at, disabled_why)
SELECT x.*, clock_timestamp(), CASE WHEN NOT x.is_active THEN now() END, CASE WHEN NOT x.is_active THEN 'admin' END
FROM (SELECT :name::text AS name, :url::text AS url, :events::text[] AS events, :headers::bytea AS headers,
             :is_active::bool AS is_active, :id::uuid AS id, :tenant::int4 AS tenant_id, :secret::bytea AS secret) x
