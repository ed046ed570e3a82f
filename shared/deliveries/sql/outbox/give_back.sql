UPDATE outbox SET act_at = now() WHERE id = ANY (:rows::int8[]) AND published_at IS NULL
