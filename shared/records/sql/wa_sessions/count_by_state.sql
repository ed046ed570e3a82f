SELECT state, count(*) AS n FROM wa_sessions GROUP BY state
