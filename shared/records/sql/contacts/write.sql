-- People that were found are changed. The others are created, unless another caller has created them meanwhile.
WITH given AS MATERIALIZED (
    SELECT f.tenant_id, g.* FROM (SELECT :tenant::int4 AS tenant_id) f CROSS JOIN
        unnest(:id::text[], :profile::bytea[], :locale::text[], :time_zone::text[], :quiet_start::int2[],
               :quiet_end::int2[], :attributes::text[], :is_row::bool[])
            AS g(user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes, is_row)
), changed AS (
    UPDATE users u SET profile = g.profile, locale = g.locale, time_zone = g.time_zone, quiet_start = g.quiet_start,
        quiet_end = g.quiet_end, attributes = g.attributes::jsonb, updated_at = clock_timestamp()
    FROM given g WHERE g.is_row AND u.tenant_id = g.tenant_id AND u.user_id = g.user_id
)
INSERT INTO users (tenant_id, user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes)
SELECT tenant_id, user_id, profile, locale, time_zone, quiet_start, quiet_end, attributes::jsonb
FROM given WHERE NOT is_row
ON CONFLICT DO NOTHING
RETURNING user_id
