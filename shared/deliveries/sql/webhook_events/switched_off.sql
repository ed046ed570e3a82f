-- Sweeps a configuration for two minutes after it was switched off, at most once every 5 s. After that no worker holds
-- any of its events.
SELECT id FROM webhook_configurations
WHERE NOT is_active AND disabled_at IS NOT NULL
  AND (swept_at IS NULL OR (swept_at < disabled_at + interval '2 minutes' AND swept_at < now() - interval '5 seconds'))
