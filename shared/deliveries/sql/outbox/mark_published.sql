UPDATE outbox SET published_at = now(), act_at = now() + :audit_after_ms::int4 * interval '1 millisecond'
WHERE id = ANY (:rows::int8[]) AND published_at IS NULL
