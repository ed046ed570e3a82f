DELETE FROM token_families WHERE id IN (
    SELECT id FROM token_families WHERE expires_at < now() ORDER BY expires_at LIMIT :limit)
