ALTER TABLE notification_types DROP COLUMN send_window;
