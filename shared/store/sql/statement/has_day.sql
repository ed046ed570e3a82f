SELECT to_regclass('messages' || d.suffix) IS NOT NULL AND to_regclass('deliveries' || d.suffix) IS NOT NULL
   AND to_regclass('delivery_events' || d.suffix) IS NOT NULL
FROM (SELECT :suffix::text AS suffix) d
