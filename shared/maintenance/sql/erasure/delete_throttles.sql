DELETE FROM throttles WHERE tenant_id = :tenant AND user_id = :user_id
