ALTER TABLE wa_sessions DROP COLUMN is_operators;
