UPDATE webhook_configurations
SET previous_secret = secret, secret = :secret, previous_until = now() + :grace_seconds::int4 * interval '1 second',
    updated_at = clock_timestamp()
WHERE tenant_id = :tenant AND id = :id
