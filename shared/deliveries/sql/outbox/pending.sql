-- The number of unpublished rows, counted up to a limit, and the age in seconds of the oldest of these.
SELECT count(*) AS pending, coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS age
FROM (SELECT created_at FROM outbox WHERE published_at IS NULL ORDER BY act_at LIMIT :at_most) o
