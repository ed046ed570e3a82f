WITH l AS (
    SELECT l.id, l.waiting FROM lines l JOIN wa_sessions s ON s.id = l.id
    WHERE l.id = :id AND s.tenant_id = :tenant
    FOR UPDATE OF l
), idle AS (
    SELECT id FROM l WHERE waiting = 0 AND NOT EXISTS (
        SELECT 1 FROM deliveries d
        WHERE d.line = l.id AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))
), line AS (
    DELETE FROM lines WHERE id IN (SELECT id FROM idle)
), gone AS (
    DELETE FROM wa_sessions WHERE id IN (SELECT id FROM idle) RETURNING id
)
SELECT EXISTS (SELECT 1 FROM gone) AS is_gone, greatest(waiting, 1) AS waiting FROM l
