DELETE FROM categories WHERE tenant_id = :tenant AND name = :name
