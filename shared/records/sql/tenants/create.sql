INSERT INTO tenants (slug, webhook_secret) VALUES (:slug, :webhook_secret)
RETURNING id, slug, webhook_secret, created_at
