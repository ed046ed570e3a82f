INSERT INTO provider_events (id, teller, dedup, body)
SELECT * FROM unnest(:ids::uuid[], :sources::text[], :dedups::bytea[], :bodies::bytea[])
ON CONFLICT (dedup) DO NOTHING
RETURNING id
