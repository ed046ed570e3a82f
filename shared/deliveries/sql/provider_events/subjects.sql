SELECT d.id, d.tenant_id, d.run, d.channel, d.state, d.provider,
       (SELECT x.provider_ref FROM delivery_events@ x
        WHERE x.delivery_id = d.id AND x.run = d.run AND x.provider_ref IS NOT NULL LIMIT 1) AS reference,
       EXISTS (SELECT 1 FROM delivery_events@ x
               WHERE x.delivery_id = d.id AND x.run = d.run AND x.kind = 'ambiguous') AS in_doubt
FROM deliveries@ d WHERE d.id = ANY (:ids::uuid[])
