SELECT EXISTS (SELECT FROM templates WHERE tenant_id = :tenant AND name = :name)
