-- The claim set the row's time right after it took the slot.
SELECT move_slot(:line, d.updated_at) FROM deliveries@ d WHERE d.id = :delivery
