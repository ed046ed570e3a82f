UPDATE imports SET status = :status, bytes = :bytes, rows = :rows, imported = :imported, refused = :refused,
    faults = :faults::text::jsonb, updated_at = clock_timestamp()
WHERE tenant_id = :tenant AND id = :id
