SELECT username, tenant_id FROM amqp_users ORDER BY username
