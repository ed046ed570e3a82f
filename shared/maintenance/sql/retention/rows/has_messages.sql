SELECT EXISTS (SELECT FROM messages@ WHERE tenant_id = :tenant AND id >= :low)
