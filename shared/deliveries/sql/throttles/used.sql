SELECT t.rule_id,
       (SELECT count(*) FROM unnest(t.taken) AS m WHERE m > now() - a.seconds * interval '1 second') AS used
FROM unnest(:rules::uuid[], :seconds::int4[]) AS a(rule_id, seconds)
JOIN throttles t ON t.rule_id = a.rule_id AND t.user_id = :user_id
