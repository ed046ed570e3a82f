ALTER TABLE breakers DROP COLUMN paused_until;
ALTER TABLE deliveries DROP COLUMN round;
DROP TABLE suppressions;
