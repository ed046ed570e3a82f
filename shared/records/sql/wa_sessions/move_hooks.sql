UPDATE wa_sessions SET hook_url = :base || '/' || id, checked_at = NULL
WHERE hook_url IS DISTINCT FROM :base || '/' || id
