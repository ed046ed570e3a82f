-- A row is locked before its times are counted, so of two concurrent callers the second counts the first one's permit.
INSERT INTO throttles AS t (rule_id, tenant_id, user_id, taken, most, seconds, taker, until)
SELECT a.rule_id, x.tenant_id, x.user_id, ARRAY[clock_timestamp()], a.most, a.seconds, x.taker,
       clock_timestamp() + a.seconds * interval '1 second'
FROM (SELECT :tenant::int4 AS tenant_id, :user_id::text AS user_id, :taker::uuid AS taker) x
CROSS JOIN unnest(:rules::uuid[], :most::int4[], :seconds::int4[]) AS a(rule_id, most, seconds)
ON CONFLICT (rule_id, user_id) DO UPDATE SET
    most = excluded.most, seconds = excluded.seconds, (taken, taker, until) = (
        SELECT CASE WHEN cardinality(l.taken) < excluded.most THEN l.taken || clock_timestamp() ELSE t.taken END,
               CASE WHEN cardinality(l.taken) < excluded.most THEN excluded.taker ELSE t.taker END,
               CASE WHEN cardinality(l.taken) < excluded.most
                    THEN clock_timestamp() + excluded.seconds * interval '1 second' ELSE t.until END
        FROM (SELECT ARRAY(
                  SELECT m FROM unnest(t.taken) AS m
                  WHERE m > clock_timestamp() - excluded.seconds * interval '1 second' ORDER BY m) AS taken) l)
RETURNING t.rule_id, t.taker = :taker AS is_granted, coalesce(t.taken[cardinality(t.taken)], t.until) AS at
