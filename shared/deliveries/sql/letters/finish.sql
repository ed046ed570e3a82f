-- A letter that matched and was not moved counts as skipped. A letter whose commit came late counts as matched.
UPDATE replays
SET status = 'done', finished_at = now(), matched = greatest(matched, replayed),
    skipped = greatest(matched - replayed, 0)
WHERE id = :replay AND status = 'running'
