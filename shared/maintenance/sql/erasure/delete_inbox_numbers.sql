-- The counters of an empty inbox.
DELETE FROM inboxes b WHERE b.tenant_id = :tenant AND b.user_id = :user_id
    AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.tenant_id = b.tenant_id AND i.user_id = b.user_id)
