SELECT e.delivery_id, e.run, e.kind, e.at, e.provider, e.outcome, e.code, e.detail, e.duration_ms, e.provider_ref
FROM unnest(:ids::uuid[]) AS asked(id) JOIN delivery_events@ e ON e.delivery_id = asked.id
ORDER BY e.at, e.run, e.kind
