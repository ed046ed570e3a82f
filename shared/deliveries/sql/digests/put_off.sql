-- A full window keeps its state: it takes no more events, however long it waits.
UPDATE digests d SET closes_at = p.at, latest_at = CASE WHEN p.is_end THEN p.at ELSE d.latest_at END
FROM unnest(:ids::uuid[], :moments::timestamptz[], :ends::bool[]) AS p(id, at, is_end) WHERE d.id = p.id
