-- During a key rotation a token may be stored under the fingerprint of an older key: `known` has all fingerprints.
WITH given AS MATERIALIZED (
    SELECT :id::uuid AS id, :tenant::int4 AS tenant_id, :user_id::text AS user_id, :token::text AS token,
        :token_hash::bytea AS token_hash, :platform::text AS platform, :known::bytea[] AS known,
        :may_move::bool AS may_move
), found AS MATERIALIZED (
    SELECT d.id FROM devices d, given g WHERE d.tenant_id = g.tenant_id AND d.token_hash = ANY (g.known)
), moved AS (
    UPDATE devices d SET user_id = g.user_id, token = g.token, token_hash = g.token_hash,
        platform = coalesce(g.platform, d.platform)
    FROM given g
    WHERE d.tenant_id = g.tenant_id AND d.token_hash = ANY (g.known) AND (g.may_move OR d.user_id = g.user_id)
    RETURNING d.id, d.platform, d.created_at, false AS is_new
), made AS (
    INSERT INTO devices (id, tenant_id, user_id, token, token_hash, platform)
    SELECT id, tenant_id, user_id, token, token_hash, platform FROM given WHERE NOT EXISTS (SELECT FROM found)
    ON CONFLICT (tenant_id, token_hash) DO UPDATE SET user_id = excluded.user_id, token = excluded.token,
        platform = coalesce(excluded.platform, devices.platform)
        WHERE devices.user_id = excluded.user_id OR (SELECT may_move FROM given)
    RETURNING id, platform, created_at, id = (SELECT id FROM given) AS is_new
)
SELECT * FROM moved UNION ALL SELECT * FROM made
