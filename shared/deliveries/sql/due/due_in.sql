SELECT extract(epoch FROM (
    SELECT due_at FROM due WHERE why <> 'watch' ORDER BY due_at LIMIT 1) - now())::float8 AS seconds
