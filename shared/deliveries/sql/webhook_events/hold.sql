UPDATE webhook_events SET carrier = NULL WHERE id = ANY (:events::int8[]) AND carrier = ANY (:cancelled::uuid[])
