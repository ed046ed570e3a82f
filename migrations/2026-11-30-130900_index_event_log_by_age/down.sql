DROP INDEX event_log_age;
