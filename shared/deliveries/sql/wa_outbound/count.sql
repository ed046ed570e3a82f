WITH asked AS (
    SELECT :tenant::int4 AS tenant_id, coalesce(:from::timestamptz, '-infinity') AS low,
           coalesce(:to::timestamptz, 'infinity') AS high
), bounds AS (
    SELECT tenant_id, low, high,
           CASE WHEN isfinite(low) THEN uuid7_floor(low)
               ELSE '00000000-0000-0000-0000-000000000000'::uuid END AS low_id,
           CASE WHEN isfinite(high) THEN uuid7_floor(high + interval '1 millisecond')
               ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid END AS high_id
    FROM asked
), sent AS (
    SELECT (to_timestamp(('x' || translate(left(d.id::text, 13), '-', ''))::bit(48)::bigint / 1000.0)
               AT TIME ZONE 'UTC')::date AS day,
           d.line, d.state, d.kind, d.country
    FROM bounds b JOIN lines l ON l.tenant_id = b.tenant_id AND l.kind = 'session'
    JOIN deliveries d ON d.line = l.id AND d.tenant_id = b.tenant_id AND d.id >= b.low_id AND d.id < b.high_id
)
SELECT false AS is_inbound, day, line AS session, state, kind, country, count(*) AS n
FROM sent GROUP BY day, line, state, kind, country
UNION ALL
SELECT true, (i.created_at AT TIME ZONE 'UTC')::date, i.session_id, NULL::text, i.kind, i.country, count(*)
FROM bounds b JOIN wa_inbound i ON i.tenant_id = b.tenant_id AND i.id >= b.low_id AND i.id < b.high_id
GROUP BY 2, 3, 5, 6
