UPDATE broadcasts SET status = 'running', updated_at = now() WHERE status = 'scheduled' AND scheduled_at <= now()
