-- As domain/send_window.rs has it; NULL: at any time. For some hours of its making the column stood in the migration before.
ALTER TABLE notification_types ADD COLUMN IF NOT EXISTS send_window jsonb;
