INSERT INTO digest_items (digest_id, event_id, tenant_id, data)
SELECT * FROM unnest(:digests::uuid[], :events::uuid[], :tenants::int4[], :data::bytea[])
