SELECT id, name FROM rules WHERE tenant_id = :tenant AND NOT is_active ORDER BY id
