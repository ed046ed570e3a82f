DELETE FROM amqp_users WHERE username = :username
