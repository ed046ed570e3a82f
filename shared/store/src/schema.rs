//! The tables, for the query builder. The migrations are their home; a test compares the two.
#![expect(missing_docs, reason = "diesel's macro makes items that cannot carry doc comments")]

diesel::table! {
    tenants (id) {
        id -> Int4,
        slug -> Text,
        webhook_secret -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    amqp_users (username) {
        username -> Text,
        tenant_id -> Int4,
    }
}

diesel::table! {
    api_keys (id) {
        id -> Uuid,
        tenant_id -> Int4,
        role -> Text,
        name -> Text,
        hash -> Bytea,
        created_at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    bulks (id) {
        id -> Uuid,
        tenant_id -> Int4,
        content -> Bytea,
        refused -> Int4,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    messages (id) {
        id -> Uuid,
        tenant_id -> Int4,
        bulk_id -> Nullable<Uuid>,
        user_id -> Nullable<Text>,
        category -> Nullable<Text>,
        priority -> Text,
        content -> Nullable<Bytea>,
        source -> Text,
        request_id -> Nullable<Text>,
        traceparent -> Nullable<Text>,
        scheduled_at -> Nullable<Timestamptz>,
        expires_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    deliveries (id) {
        id -> Uuid,
        message_id -> Uuid,
        tenant_id -> Int4,
        channel -> Text,
        lane -> Text,
        recipient -> Text,
        state -> Text,
        run -> Int4,
        attempts -> Int2,
        deferrals -> Int2,
        crashes -> Int2,
        lease_until -> Nullable<Timestamptz>,
        provider -> Nullable<Text>,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    delivery_events (delivery_id, run, kind) {
        delivery_id -> Uuid,
        run -> Int4,
        kind -> Text,
        tenant_id -> Int4,
        channel -> Text,
        at -> Timestamptz,
        provider -> Nullable<Text>,
        outcome -> Nullable<Text>,
        code -> Nullable<Text>,
        detail -> Nullable<Text>,
        duration_ms -> Nullable<Int4>,
        provider_ref -> Nullable<Text>,
    }
}

diesel::table! {
    inbox (id) {
        id -> Uuid,
        tenant_id -> Int4,
        user_id -> Text,
        content -> Bytea,
        read_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        seq -> Int8,
        kind -> Nullable<Text>,
        category -> Nullable<Text>,
        archived_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    dead_letters (id) {
        id -> Uuid,
        tenant_id -> Nullable<Int4>,
        message_id -> Nullable<Uuid>,
        delivery_id -> Nullable<Uuid>,
        channel -> Nullable<Text>,
        origin -> Text,
        reason -> Text,
        detail -> Text,
        amqp_id -> Nullable<Text>,
        routing_key -> Nullable<Text>,
        body -> Nullable<Bytea>,
        amqp_user -> Nullable<Text>,
        status -> Text,
        replay_id -> Nullable<Uuid>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    replays (id) {
        id -> Uuid,
        tenant_id -> Nullable<Int4>,
        action -> Text,
        filter -> Jsonb,
        actor -> Text,
        note -> Text,
        rate -> Nullable<Int4>,
        matched -> Int4,
        replayed -> Int4,
        skipped -> Int4,
        status -> Text,
        created_at -> Timestamptz,
        finished_at -> Nullable<Timestamptz>,
    }
}

diesel::allow_tables_to_appear_in_same_query!(tenants, amqp_users, api_keys);
diesel::allow_tables_to_appear_in_same_query!(bulks, messages, deliveries, delivery_events);
