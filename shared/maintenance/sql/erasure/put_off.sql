UPDATE erasures SET due_at = now() + interval '10 seconds' * power(2, least(failures, 8)), failures = failures + 1
WHERE tenant_id = :tenant AND user_id = :user_id
