SELECT EXISTS (SELECT 1 FROM inbox WHERE id = :id AND tenant_id = :tenant AND user_id = :user_id)
