DROP INDEX parked_expires;
