DELETE FROM lines WHERE tenant_id = :tenant AND kind = 'tenant'
