DELETE FROM suppressions WHERE tenant_id = :tenant AND id = :id
