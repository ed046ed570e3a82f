SELECT position::text FROM retention_cursor
