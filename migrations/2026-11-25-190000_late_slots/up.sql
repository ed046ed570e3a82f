-- Moves a slot to this moment: its call ended later than the window of slots allows for, and the provider may have heard of it as
-- late as now. `taken`: a moment right after the slot was taken. The tenant's line is locked before its session's, as in `take_slots`.
CREATE FUNCTION move_slot(of_line uuid, taken timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    l    lines;
    at   timestamptz;
    kept timestamptz[];
BEGIN
    FOR l IN SELECT t.* FROM lines t
        WHERE t.id = of_line OR (t.kind = 'tenant' AND t.tenant_id = (SELECT s.tenant_id FROM lines s WHERE s.id = of_line))
        ORDER BY t.kind = 'tenant' DESC, t.id FOR UPDATE
    LOOP
        at := clock_timestamp();
        kept := ARRAY(
            SELECT s.at_ FROM unnest(l.slots) WITH ORDINALITY AS s(at_, place)
            WHERE s.place IS DISTINCT FROM (SELECT max(p.place) FROM unnest(l.slots) WITH ORDINALITY AS p(at_, place) WHERE p.at_ <= taken)
            ORDER BY 1) || at;
        UPDATE lines t SET slots = kept, free_at = greatest(
            l.free_at, CASE WHEN cardinality(kept) >= l.rate THEN kept[cardinality(kept) - l.rate + 1] + slot_window() END)
        WHERE t.id = l.id;
    END LOOP;
END
$$;
