SELECT tenant_id FROM amqp_users WHERE username = :username
