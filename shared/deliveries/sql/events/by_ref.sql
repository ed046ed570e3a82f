SELECT r.ref AS name, d.id, d.run, d.tenant_id, d.channel
FROM (SELECT :provider::text AS provider) p CROSS JOIN unnest(:refs::text[]) AS asked(ref)
JOIN provider_refs r ON r.provider = p.provider AND r.ref = asked.ref
JOIN deliveries d ON d.id = r.delivery_id
