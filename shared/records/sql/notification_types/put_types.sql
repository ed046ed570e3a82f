-- `channels` holds all channels of a type, separated by commas: PostgreSQL's arrays of arrays must be rectangular.
INSERT INTO notification_types AS t
    (tenant_id, name, category, label, description, class, channels, default_enabled, send_window)
SELECT :tenant::int4, name, category, label, description, class, string_to_array(channels, ','), default_enabled,
       send_window::jsonb
FROM unnest(:names::text[], :categories::text[], :labels::text[], :descriptions::text[], :classes::text[],
            :channels::text[], :defaults_enabled::bool[], :send_windows::text[])
    AS g(name, category, label, description, class, channels, default_enabled, send_window)
ON CONFLICT (tenant_id, name) DO UPDATE SET
    category = excluded.category, label = excluded.label, description = excluded.description,
    class = coalesce(excluded.class, t.class), channels = excluded.channels, default_enabled = excluded.default_enabled,
    send_window = excluded.send_window
WHERE (t.category, t.label, t.description, t.class, t.channels, t.default_enabled, t.send_window) IS DISTINCT FROM
    (excluded.category, excluded.label, excluded.description, coalesce(excluded.class, t.class), excluded.channels,
     excluded.default_enabled, excluded.send_window)
RETURNING name, (xmax = 0) AS is_new
