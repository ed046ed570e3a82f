INSERT INTO unread_events (id, delivery_id, run, body) VALUES (:letter, :delivery, :run, '') ON CONFLICT DO NOTHING
