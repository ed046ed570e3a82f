ALTER TABLE dead_letters DROP COLUMN amqp_user;
