WITH ended AS (DELETE FROM holds WHERE delivery_id = :delivery)
INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
SELECT provider, ref, delivery_id, tenant_id
FROM (SELECT :provider::text AS provider, :provider_ref::text AS ref, :delivery::uuid AS delivery_id,
             :tenant::int4 AS tenant_id) n
WHERE ref IS NOT NULL
ON CONFLICT DO NOTHING
