-- A body that can be published again: a producer wrote it and the intake refused it, or it is ours and could not be
-- stored. A letter without a user was written before users were kept: its user was checked, unless it was refused
-- because of its user.
SELECT id, amqp_id, routing_key,
       CASE WHEN reason = 'tenant' THEN coalesce(amqp_user, '') ELSE amqp_user END AS amqp_user, body
FROM dead_letters
WHERE id = ANY (:letters::uuid[])
  AND delivery_id IS NULL AND body IS NOT NULL AND (routing_key IS NOT NULL OR origin = 'broker')
ORDER BY id
