-- `matched` holds all rule ids of an event, separated by commas: PostgreSQL's arrays of arrays must be rectangular.
INSERT INTO event_log (id, tenant_id, event_type, user_id, data, matched)
SELECT id, tenant_id, event_type, user_id, data, string_to_array(matched, ',')::uuid[]
FROM unnest(:id::uuid[], :tenant::int4[], :event_type::text[], :user_id::text[], :data::bytea[], :matched::text[])
    AS e(id, tenant_id, event_type, user_id, data, matched)
