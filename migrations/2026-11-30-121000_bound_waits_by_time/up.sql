-- Since when a delivery has waited for a provider that may be called (behind an open breaker), without an attempt. Such waits end by
-- their length: a number of looks made dead letters of everything that an hour's outage of the only provider held up.
SET LOCAL lock_timeout = '5s';
ALTER TABLE deliveries ADD COLUMN waiting_since timestamptz;
