DELETE FROM devices WHERE tenant_id = :tenant AND user_id = :user_id AND id = :id
