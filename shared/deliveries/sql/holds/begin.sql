WITH call AS (
    -- The run is the one that the claim has just made.
    SELECT d.id, d.tenant_id, d.run, c.session_id, c.chat_hash, c.body_hash,
           now() + c.hold_ms * interval '1 millisecond' AS until
    FROM (SELECT :session::uuid AS session_id, :chat_hash::bytea AS chat_hash, :body_hash::bytea AS body_hash,
                 :hold_ms::int4 AS hold_ms, :delivery::uuid AS delivery_id) c
    JOIN deliveries@ d ON d.id = c.delivery_id
), before AS (SELECT h.delivery_id FROM holds h JOIN call ON h.delivery_id = call.id AND h.run < call.run
), begun AS (
    INSERT INTO holds (delivery_id, tenant_id, session_id, run, chat_hash, body_hash, until)
    SELECT id, tenant_id, session_id, run, chat_hash, body_hash, until FROM call
    ON CONFLICT (delivery_id) DO UPDATE SET run = excluded.run, session_id = excluded.session_id,
        chat_hash = excluded.chat_hash, body_hash = excluded.body_hash, at = now(), until = excluded.until
)
SELECT EXISTS (SELECT 1 FROM before)
