UPDATE throttles t SET taken = array_remove(t.taken, g.at)
FROM unnest(:rules::uuid[], :moments::timestamptz[]) AS g(rule_id, at)
WHERE t.rule_id = g.rule_id AND t.user_id = :user_id
