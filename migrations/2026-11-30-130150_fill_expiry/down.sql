UPDATE parked SET expires_at = NULL WHERE expires_at IS NOT NULL;
