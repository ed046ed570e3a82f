INSERT INTO retention_cursor (position) VALUES (:position::text::jsonb)
ON CONFLICT (only_row) DO UPDATE SET position = excluded.position
