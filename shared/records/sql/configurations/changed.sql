SELECT tenant_id, max(updated_at) AS at FROM webhook_configurations
WHERE updated_at > now() - :seconds::int4 * interval '1 second'
GROUP BY tenant_id
