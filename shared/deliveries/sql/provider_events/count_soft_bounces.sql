WITH asked AS MATERIALIZED (
    SELECT *
    FROM unnest(:events::uuid[], :deliveries::uuid[], :tenants::int4[], :channels::text[], :hashes::bytea[])
        AS a (event_id, delivery_id, tenant_id, channel, address_hash)
), written AS (
    INSERT INTO soft_bounces (address_hash, tenant_id, channel, event_id)
    SELECT DISTINCT address_hash, tenant_id, channel, event_id FROM asked ORDER BY 1, 2, 3, 4
    ON CONFLICT DO NOTHING
    RETURNING address_hash, tenant_id, channel
)
SELECT a.delivery_id AS delivery,
       (SELECT count(*) FROM soft_bounces b
        WHERE b.address_hash = a.address_hash AND b.tenant_id = a.tenant_id AND b.channel = a.channel)
       -- A bounce that this statement writes is not among the rows that it sees.
       + (SELECT count(*) FROM written w
          WHERE w.address_hash = a.address_hash AND w.tenant_id = a.tenant_id AND w.channel = a.channel) AS n
FROM asked a
