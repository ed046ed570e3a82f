UPDATE waha_events e SET due_at = now() + w.wait * interval '1 millisecond'
FROM unnest(:ids::uuid[], :waits_ms::int4[]) AS w (id, wait) WHERE e.id = w.id
