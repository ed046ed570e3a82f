DROP FUNCTION move_slot;
