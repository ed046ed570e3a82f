DROP INDEX dead_letters_delivery, deliveries_recipient, messages_user;
DROP TABLE erasures, retention, seal_check;
