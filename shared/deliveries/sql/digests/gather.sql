-- Groups come in order, so that concurrent callers lock windows in one order. A full window closes at once and lets the
-- next one open.
INSERT INTO digests AS d
    (id, tenant_id, rule_id, user_id, key, items, max_items, event_type, opened_at, closes_at, latest_at, state)
SELECT g.id, g.tenant_id, g.rule_id, g.user_id, g.key, g.items, g.max_items, g.event_type, g.opened_at,
       CASE WHEN g.items >= g.max_items THEN now() ELSE least(g.closes_at, g.latest_at) END, g.latest_at,
       CASE WHEN g.items >= g.max_items THEN 'full' ELSE 'open' END
FROM unnest(:id::uuid[], :tenant::int4[], :rule::uuid[], :user_id::text[], :key::text[], :items::int4[],
            :max_items::int4[], :event_type::text[], :opened_at::timestamptz[], :closes_at::timestamptz[],
            :latest_at::timestamptz[])
    AS g(id, tenant_id, rule_id, user_id, key, items, max_items, event_type, opened_at, closes_at, latest_at)
ON CONFLICT (tenant_id, rule_id, user_id, key) WHERE state = 'open' DO UPDATE SET
    items = d.items + excluded.items, max_items = excluded.max_items, event_type = excluded.event_type,
    closes_at = CASE WHEN d.items + excluded.items >= excluded.max_items THEN now()
                     ELSE least(d.latest_at, greatest(d.closes_at, excluded.closes_at)) END,
    state = CASE WHEN d.items + excluded.items >= excluded.max_items THEN 'full' ELSE 'open' END
RETURNING d.id, d.tenant_id, d.rule_id, d.user_id, d.key
