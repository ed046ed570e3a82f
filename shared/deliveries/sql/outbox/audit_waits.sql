SELECT EXISTS (SELECT 1 FROM outbox WHERE published_at IS NOT NULL AND act_at <= now()) AS waits
