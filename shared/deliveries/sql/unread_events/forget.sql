DELETE FROM unread_events WHERE id = ANY (:ids::uuid[])
