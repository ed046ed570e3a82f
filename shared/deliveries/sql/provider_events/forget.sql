WITH events AS (
    DELETE FROM provider_events WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM provider_events
        WHERE created_at < now() - :remembered::text::interval AND status <> 'pending'
        ORDER BY created_at LIMIT :limit))
    RETURNING 1
), bounces AS (
    DELETE FROM soft_bounces WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM soft_bounces
        WHERE created_at < now() - :remembered::text::interval * 3
        ORDER BY created_at LIMIT :limit))
    RETURNING 1
)
SELECT greatest((SELECT count(*) FROM events), (SELECT count(*) FROM bounces))
