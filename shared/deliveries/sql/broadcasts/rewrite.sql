UPDATE broadcasts SET definition = :definition, after_user = :after WHERE id = :id
