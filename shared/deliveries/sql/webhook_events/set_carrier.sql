UPDATE webhook_events w SET pending = false, carrier = x.carrier
FROM unnest(:ids::int8[], :carriers::uuid[]) AS x (id, carrier) WHERE w.id = x.id AND w.pending
