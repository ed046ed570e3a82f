-- Refresh tokens of the person.
DELETE FROM token_families WHERE tenant_id = :tenant AND subject = :user_id AND created_at <= :asked_at
