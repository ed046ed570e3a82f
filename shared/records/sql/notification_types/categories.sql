SELECT name, label, class FROM categories WHERE tenant_id = :tenant ORDER BY name
