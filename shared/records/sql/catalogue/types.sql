SELECT name, category, label, description, class, channels, default_enabled, send_window::text AS send_window
FROM notification_types WHERE tenant_id = :tenant ORDER BY name
