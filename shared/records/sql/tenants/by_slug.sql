SELECT id, slug, webhook_secret, created_at FROM tenants WHERE slug = :slug
