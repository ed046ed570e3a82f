INSERT INTO waha_events (id, tenant_id, session_id, dedup, event, body)
SELECT *
FROM unnest(:ids::uuid[], :tenants::int4[], :sessions::uuid[], :dedups::bytea[], :events::text[], :bodies::bytea[])
ON CONFLICT (session_id, dedup) DO NOTHING
RETURNING id
