-- Deletes the row of a person of whom nothing else is known.
DELETE FROM users u
WHERE tenant_id = :tenant AND user_id = :user_id AND profile IS NULL AND preferences IS NULL AND locale IS NULL
  AND time_zone IS NULL AND quiet_start IS NULL AND attributes = '{}'
  AND NOT EXISTS (SELECT FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id)
