DELETE FROM erasures WHERE tenant_id = :tenant AND user_id = :user_id AND created_at <= :asked_at
