UPDATE webhook_configurations SET swept_at = now() WHERE id = :configuration
