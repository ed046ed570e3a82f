UPDATE wa_sessions SET is_operators = false WHERE is_operators;
