SELECT coalesce(max(waiting), 0)::int8 FROM lines WHERE id = ANY (:lines::uuid[])
