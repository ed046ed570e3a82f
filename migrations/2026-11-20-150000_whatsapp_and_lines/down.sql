DROP FUNCTION take_slots, note_slots, slots_free;
DROP TABLE wa_inbound, waha_events, provider_refs, parked, lines, wa_sessions;
ALTER TABLE deliveries DROP COLUMN line, DROP COLUMN rank, DROP COLUMN recipient_hash;
DROP FUNCTION count_parked, slot_window;
