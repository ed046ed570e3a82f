SELECT r.ref AS name, r.delivery_id AS delivery
FROM (SELECT :provider::text AS provider) p CROSS JOIN unnest(:refs::text[]) AS asked (ref)
JOIN provider_refs r ON r.provider = p.provider AND r.ref = asked.ref
