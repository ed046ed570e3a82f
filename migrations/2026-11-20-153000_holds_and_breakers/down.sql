DROP INDEX deliveries_line;
ALTER TABLE deliveries DROP COLUMN kind, DROP COLUMN country;
DROP TABLE holds, breakers;
