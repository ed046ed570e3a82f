UPDATE erasures SET due_at = now() + :pause * interval '1 second', failures = 0
WHERE tenant_id = :tenant AND user_id = :user_id
