-- The broker user that published a refused submission, as the broker checked it: a replay is judged by it again. Empty: the
-- publisher did not say; NULL: no submission, or written before this column was.
SET LOCAL lock_timeout = '5s';
ALTER TABLE dead_letters ADD COLUMN amqp_user text;
