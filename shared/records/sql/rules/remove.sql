DELETE FROM rules WHERE tenant_id = :tenant AND id = :id
