SELECT name, class FROM categories WHERE tenant_id = :tenant AND class IS NOT NULL
