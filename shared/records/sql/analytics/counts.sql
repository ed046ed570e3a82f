-- One walk over the days, whatever is asked; each kind of sums is small.
SELECT x.by, x.key, x.kind, x.n AS count FROM (
    SELECT CASE WHEN grouping(c.day) = 0 THEN 'day' WHEN grouping(c.channel) = 0 THEN 'channel'
                WHEN grouping(c.provider) = 0 THEN 'provider' WHEN grouping(c.template) = 0 THEN 'template'
                WHEN grouping(c.category) = 0 THEN 'category' ELSE 'total' END AS by,
           coalesce(c.day::text, c.channel, c.provider, c.template, c.category, '') AS key, c.kind, sum(c.n)::int8 AS n
    FROM (SELECT :tenant::int4 AS tenant_id, :from_day::date AS from_day, :to_day::date AS to_day,
                 :channel::text AS channel, :provider::text AS provider, :template::text AS template,
                 :category::text AS category) f
    JOIN daily_counts c ON c.tenant_id = f.tenant_id AND c.day >= f.from_day AND c.day <= f.to_day
    WHERE (f.channel IS NULL OR c.channel = f.channel) AND (f.provider IS NULL OR c.provider = f.provider)
      AND (f.template IS NULL OR c.template = f.template) AND (f.category IS NULL OR c.category = f.category)
    GROUP BY GROUPING SETS ((c.kind), (c.day, c.kind), (c.channel, c.kind), (c.provider, c.kind), (c.template, c.kind),
                            (c.category, c.kind))) x
WHERE x.by = 'total' OR x.by = ANY (:by::text[])
ORDER BY 1, 2
