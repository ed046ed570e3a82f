DELETE FROM devices WHERE id = ANY (ARRAY(
    SELECT id FROM devices WHERE tenant_id = :tenant AND user_id = :user_id AND id <> :id
    ORDER BY id DESC OFFSET :others_max))
