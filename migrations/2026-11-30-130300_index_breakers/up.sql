-- The breakers that are not as if they had never been: what workers read every second.
CREATE INDEX CONCURRENTLY breakers_troubled ON breakers (key) WHERE state <> 'closed' OR failures > 0 OR paused_until > '-infinity';
