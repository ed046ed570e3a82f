SELECT :tenant = min(id) FROM tenants
