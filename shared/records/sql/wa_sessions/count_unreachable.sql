SELECT count(*) FROM wa_sessions WHERE is_wanted AND unreachable_since IS NOT NULL
