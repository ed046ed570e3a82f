UPDATE dead_letters
SET body = NULL, detail = '', status = CASE status WHEN 'open' THEN 'dropped' ELSE status END
WHERE tenant_id = :tenant AND id = ANY (:ids::uuid[])
