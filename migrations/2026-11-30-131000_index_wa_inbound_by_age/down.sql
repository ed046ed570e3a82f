DROP INDEX wa_inbound_age;
