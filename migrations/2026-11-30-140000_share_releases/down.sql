DROP INDEX lines_shares;
DROP INDEX lines_free;
CREATE INDEX lines_free ON lines (free_at) WHERE waiting > 0 AND is_open AND kind = 'session';
CREATE INDEX lines_shares ON lines (route, id) WHERE waiting > 0 AND kind = 'share';
ALTER TABLE lines DROP COLUMN is_waiting;
DROP FUNCTION share_line(integer, text);
