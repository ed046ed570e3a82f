UPDATE broadcasts SET total = :total WHERE id = :id AND total IS NULL
