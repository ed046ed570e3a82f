//! The one table for the query builder: the filter of dead letters is made at run time. The migrations define it; a
//! test compares [`dead_letters_columns`] with them.
#![expect(missing_docs, reason = "diesel's macro makes items that cannot carry doc comments")]

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

/// A statement that reads each column, for the test that prepares it.
pub fn dead_letters_columns() -> String {
    use diesel::QueryDsl;
    let query = dead_letters::table.select(dead_letters::all_columns);
    diesel::debug_query::<diesel::pg::Pg, _>(&query).to_string()
}
