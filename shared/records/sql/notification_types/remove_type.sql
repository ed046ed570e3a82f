DELETE FROM notification_types WHERE tenant_id = :tenant AND name = :name
