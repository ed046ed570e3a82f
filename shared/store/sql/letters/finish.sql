-- Whatever matched and was not moved counts as skipped, and a letter whose commit came late as matched.
UPDATE replays
SET status = 'done', finished_at = now(), matched = greatest(matched, replayed),
    skipped = greatest(matched - replayed, 0)
WHERE id = :replay AND status = 'running'
