-- As domain/send_window.rs has it; NULL: at any time.
ALTER TABLE notification_types ADD COLUMN send_window jsonb;
