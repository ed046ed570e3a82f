SELECT definition, after_user FROM broadcasts WHERE id = :id AND status = 'running'
