UPDATE wa_sessions SET hook_url = :hook_url WHERE id = :id
