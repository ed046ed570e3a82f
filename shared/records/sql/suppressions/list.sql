SELECT s.id, s.channel, s.address, s.scope, s.reason, s.detail, s.delivery_id, s.created_at
FROM (SELECT :tenant::int4 AS tenant_id, :before::uuid AS before, :hashes::bytea[] AS hashes,
             :channel::text AS channel) asked
JOIN suppressions s USING (tenant_id)
WHERE s.id < asked.before AND (asked.hashes IS NULL OR s.address_hash = ANY (asked.hashes))
  AND (asked.channel IS NULL OR s.channel = asked.channel)
ORDER BY s.id DESC LIMIT :limit
