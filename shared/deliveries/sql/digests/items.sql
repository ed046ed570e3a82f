SELECT x.digest_id, x.data FROM (
    SELECT i.digest_id, i.event_id, i.data,
           sum(octet_length(i.data)) OVER (PARTITION BY i.digest_id ORDER BY i.event_id) AS bytes
    FROM digest_items i WHERE i.digest_id = ANY (:digests::uuid[])) x
WHERE x.bytes <= :bytes_max ORDER BY x.digest_id, x.event_id
