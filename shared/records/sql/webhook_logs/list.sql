SELECT id, event, delivery_id AS delivery, attempt, response_status AS status, request, response, duration_ms,
       created_at AS at
FROM webhook_logs WHERE configuration_id = :configuration AND tenant_id = :tenant AND id < :before
ORDER BY id DESC LIMIT :limit
