DROP INDEX dead_letters_delivery, wa_inbound_chat, deliveries_recipient, messages_user;
DROP TABLE erasures, retention, seal_check;
