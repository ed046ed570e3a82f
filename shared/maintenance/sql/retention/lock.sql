-- The time limit of other transactions is shorter than a turn may take. Without any limit, a process on a lost machine
-- would keep the lock.
SELECT pg_try_advisory_xact_lock(hashtext(:name))
FROM set_config('idle_in_transaction_session_timeout', '5min', true)
