WITH seen AS MATERIALIZED (
    SELECT h.delivery_id, h.run, h.echo, d.tenant_id, d.channel, d.run AS now_at, d.state
    FROM (SELECT * FROM holds WHERE echo IS NOT NULL OR at < now() - interval '1 minute'
          ORDER BY echo IS NULL, at LIMIT :limit) h
    LEFT JOIN deliveries d ON d.id = h.delivery_id
), gone AS (
    DELETE FROM holds WHERE delivery_id IN (
        SELECT delivery_id FROM seen
        WHERE coalesce(state, 'none') NOT IN ('scheduled', 'queued', 'sending', 'retrying'))
)
SELECT tenant_id, delivery_id, now_at AS run, channel FROM seen
WHERE echo IS NOT NULL AND state IN ('retrying', 'queued')
