-- Marks the sessions that there are. A migration of its own, because the one that adds the column locks the table against every reader
-- until it commits. Sessions that the version before makes from now on are marked when an ingest starts.
UPDATE wa_sessions SET is_operators = true WHERE tenant_id = (SELECT min(id) FROM tenants) AND NOT is_operators;
