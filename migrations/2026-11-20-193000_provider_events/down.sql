DROP TABLE service_secrets;
DROP TABLE soft_bounces;
DROP TABLE provider_events;
