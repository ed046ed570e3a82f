SELECT secret FROM service_secrets WHERE id = :id
