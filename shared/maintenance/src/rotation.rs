//! Key rotation: encrypts every sealed value again with the newest key, in small steps while services run.
//!
//! The progress of a rotation is not stored: each value names its key. A step reads a few rows, seals them and writes
//! them back only if they have not changed since, so no change is lost.

use diesel::{
    QueryableByName,
    sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text},
};
use diesel_async::RunQueryDsl;
use domain::{
    TenantId,
    seal::{self, SealError, Sealer},
};
use runtime::reconnect::Reconnect;
use store::{DbResult, sealed};

use crate::KeyRotation;

/// Rows read by one statement.
const SCAN: i64 = 2000;
/// Values written by one statement.
const ROWS: usize = 200;
/// Their bytes together; a single larger value goes alone.
const BYTES: i64 = 8 * 1024 * 1024;

/// The key of a table's rows, by which they are read in order.
#[derive(Clone, Copy)]
enum Key {
    Uuid,
    Number,
    /// Tenant and hash.
    Idempotency,
    /// Digest and event.
    Item,
    /// Tenant and the tenant's own id of a person.
    Person,
}

impl Key {
    /// The key as text.
    const fn shown(self) -> &'static str {
        match self {
            Self::Uuid | Self::Number => "t.id::text",
            Self::Idempotency => "t.tenant_id || ':' || encode(t.key_hash, 'hex')",
            Self::Item => "t.digest_id || ':' || t.event_id",
            Self::Person => "t.tenant_id || ':' || t.user_id",
        }
    }

    const fn columns(self) -> &'static str {
        match self {
            Self::Uuid | Self::Number => "t.id",
            Self::Idempotency => "(t.tenant_id, t.key_hash)",
            Self::Item => "(t.digest_id, t.event_id)",
            Self::Person => "(t.tenant_id, t.user_id)",
        }
    }

    const fn order(self) -> &'static str {
        match self {
            Self::Uuid | Self::Number => "t.id",
            Self::Idempotency => "t.tenant_id, t.key_hash",
            Self::Item => "t.digest_id, t.event_id",
            Self::Person => "t.tenant_id, t.user_id",
        }
    }

    /// The text `k` as a key.
    fn parsed(self, k: &str) -> String {
        match self {
            Self::Uuid => format!("{k}::uuid"),
            Self::Number => format!("{k}::int4"),
            Self::Idempotency => format!("(split_part({k}, ':', 1)::int4, decode(split_part({k}, ':', 2), 'hex'))"),
            Self::Item => format!("(split_part({k}, ':', 1)::uuid, split_part({k}, ':', 2)::uuid)"),
            // The id may contain colons.
            Self::Person => format!("(split_part({k}, ':', 1)::int4, substr({k}, strpos({k}, ':') + 1))"),
        }
    }

    /// Before every key.
    const fn start(self) -> &'static str {
        match self {
            Self::Uuid => "00000000-0000-0000-0000-000000000000",
            Self::Number => "0",
            Self::Idempotency | Self::Person => "0:",
            Self::Item => "00000000-0000-0000-0000-000000000000:00000000-0000-0000-0000-000000000000",
        }
    }
}

/// A column whose values are sealed.
struct Column {
    table: &'static str,
    name: &'static str,
    key: Key,
    is_text: bool,
    /// The place to which its values are bound.
    place: seal::Column,
    /// Whether its values belong to their row's tenant, or to no tenant.
    is_tenants: bool,
    /// The column with the fingerprint of the value, unique within its tenant.
    hash: Option<&'static str>,
    /// The condition on its rows; empty: all rows.
    only: &'static str,
}

const fn bytes(table: &'static str, name: &'static str, place: seal::Column) -> Column {
    Column { table, name, key: Key::Uuid, is_text: false, place, is_tenants: true, hash: None, only: "" }
}

const fn text(table: &'static str, name: &'static str, place: seal::Column) -> Column {
    Column { is_text: true, ..bytes(table, name, place) }
}

const fn of_nobody(column: Column) -> Column {
    Column { is_tenants: false, ..column }
}

/// Every column whose values are sealed. A new one must be added here; the test of rotation looks through the whole
/// database.
const COLUMNS: &[Column] = &[
    of_nobody(Column { key: Key::Number, ..text("tenants", "webhook_secret", sealed::TENANT_SECRET) }),
    bytes("messages", "content", sealed::CONTENT),
    bytes("bulks", "content", sealed::CONTENT),
    Column { hash: Some("recipient_hash"), ..text("deliveries", "recipient", sealed::RECIPIENT) },
    Column { key: Key::Idempotency, ..bytes("idempotency_keys", "response", sealed::RESPONSE) },
    bytes("inbox", "content", sealed::INBOX),
    of_nobody(bytes("dead_letters", "body", sealed::LETTER_BODY)),
    of_nobody(Column { only: " AND t.delivery_id IS NULL", ..text("dead_letters", "detail", sealed::LETTER_DETAIL) }),
    bytes("wa_sessions", "api_key", sealed::SESSION_KEY),
    bytes("wa_sessions", "webhook_secret", sealed::SESSION_SECRET),
    bytes("wa_sessions", "previous_secret", sealed::SESSION_SECRET),
    bytes("webhook_configurations", "headers", sealed::CONFIGURATION_HEADERS),
    bytes("webhook_configurations", "secret", sealed::CONFIGURATION_SECRET),
    bytes("webhook_configurations", "previous_secret", sealed::CONFIGURATION_SECRET),
    bytes("waha_events", "body", sealed::WAHA_EVENT),
    of_nobody(Column { only: " AND t.body <> ''::bytea", ..bytes("provider_events", "body", sealed::PROVIDER_EVENT) }),
    of_nobody(Column { key: Key::Number, ..bytes("service_secrets", "secret", sealed::SERVICE_SECRET) }),
    Column { hash: Some("chat_hash"), ..text("wa_inbound", "sender", sealed::INBOUND_SENDER) },
    text("wa_inbound", "recipient", sealed::INBOUND_RECIPIENT),
    Column { hash: Some("address_hash"), ..text("suppressions", "address", sealed::SUPPRESSION) },
    bytes("wa_inbound", "content", sealed::INBOUND_CONTENT),
    bytes("event_log", "data", sealed::EVENT_DATA),
    Column { key: Key::Item, ..bytes("digest_items", "data", sealed::DIGEST_ITEM) },
    bytes("webhook_logs", "request", sealed::LOG_REQUEST),
    bytes("webhook_logs", "response", sealed::LOG_RESPONSE),
    Column { key: Key::Person, ..bytes("users", "profile", sealed::PROFILE) },
    Column { hash: Some("token_hash"), ..text("devices", "token", sealed::DEVICE) },
    bytes("broadcasts", "definition", sealed::BROADCAST),
];

#[derive(QueryableByName)]
struct Scanned {
    #[diesel(sql_type = Text)]
    k: String,
    #[diesel(sql_type = Bool)]
    stale: bool,
    #[diesel(sql_type = Int8)]
    size: i64,
}

#[derive(QueryableByName)]
struct Value {
    #[diesel(sql_type = Text)]
    k: String,
    #[diesel(sql_type = Binary)]
    v: Vec<u8>,
    /// 0: of no tenant.
    #[diesel(sql_type = Int4)]
    tenant: i32,
    #[diesel(sql_type = Nullable<Binary>)]
    hash: Option<Vec<u8>>,
}

impl Column {
    /// The next keys after one, and whether their values have the newest key.
    fn scan(&self) -> String {
        let Self { table, name, key, is_text, only, .. } = self;
        let head = if *is_text {
            format!("left(t.{name}, length($2))")
        } else {
            format!("encode(substr(t.{name}, 1, 8), 'hex')")
        };
        let (shown, columns, order, after) = (key.shown(), key.columns(), key.order(), key.parsed("$1"));
        format!(
            "SELECT {shown} AS k, {head} <> $2 AS stale, octet_length(t.{name})::int8 AS size FROM {table} t \
             WHERE {columns} > {after} AND t.{name} IS NOT NULL{only} ORDER BY {order} LIMIT {SCAN}"
        )
    }

    fn select(&self) -> String {
        let Self { table, name, key, is_text, hash, is_tenants, .. } = self;
        let value = if *is_text { format!("convert_to(t.{name}, 'UTF8')") } else { format!("t.{name}") };
        let tenant = if *is_tenants { "t.tenant_id" } else { "0" };
        let hash = hash.map_or_else(|| "NULL::bytea".to_owned(), |hash| format!("t.{hash}"));
        let (columns, asked) = (key.columns(), key.parsed("asked.k"));
        format!(
            "SELECT asked.k, {value} AS v, {tenant} AS tenant, {hash} AS hash FROM unnest($1::text[]) AS asked(k) \
             JOIN {table} t ON {columns} = {asked} WHERE t.{name} IS NOT NULL ORDER BY 1"
        )
    }

    /// Writes only if the row still has the value that was read.
    fn update(&self) -> String {
        let Self { table, name, key, is_text, hash, .. } = self;
        let value = |new: &str| if *is_text { format!("convert_from({new}, 'UTF8')") } else { new.to_owned() };
        let hash = hash.map(|hash| format!(", {hash} = u.hash")).unwrap_or_default();
        let (columns, asked) = (key.columns(), key.parsed("u.k"));
        format!(
            "UPDATE {table} t SET {name} = {new}{hash} \
             FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::bytea[]) AS u(k, old, new, hash) \
             WHERE {columns} = {asked} AND t.{name} = {old}",
            new = value("u.new"),
            old = value("u.old")
        )
    }

    fn head(&self, (bytes, text): &(Vec<u8>, String)) -> String {
        if self.is_text { text.clone() } else { bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    /// The new value in place of `value`, and its fingerprint.
    fn renewed(&self, sealer: &Sealer, value: &Value) -> Result<(Vec<u8>, Option<Vec<u8>>), SealError> {
        let place = self.place.of(TenantId(value.tenant));
        if !self.is_text {
            return Ok((sealer.seal(place, &sealer.open(place, value.v.clone())?)?, None));
        }
        let stored = String::from_utf8_lossy(&value.v).into_owned();
        let plain = match sealer.open_text(place, stored.clone()) {
            Err(SealError::UnknownKey | SealError::Damaged) if self.is_plain(value, &stored) => stored,
            opened => opened?,
        };
        let hash = self.hash.filter(|_| !plain.is_empty());
        let hash = hash.map(|_| sealer.fingerprint(&value.tenant.to_string(), &plain).to_vec());
        Ok((sealer.seal_text(place, &plain)?.into_bytes(), hash))
    }

    /// Whether a text that looks sealed was stored without a key, by a version that did not escape it. Then its
    /// fingerprint is that of the text itself without a key, or there is none.
    fn is_plain(&self, value: &Value, stored: &str) -> bool {
        let print = || Sealer::default().fingerprint(&value.tenant.to_string(), stored);
        self.hash.is_some() && value.hash.as_ref().is_none_or(|hash| *hash == print())
    }
}

impl KeyRotation<'_> {
    /// The number of values that are not sealed with the newest key and bound to their place: values of older keys, of
    /// the former format, or stored without a key.
    pub async fn stale_values(self) -> DbResult<u64> {
        let mut count = 0;
        for column in COLUMNS {
            let mut after = column.key.start().to_owned();
            while let Some((stale, last)) = self.scan(column, &after).await? {
                count += u64::try_from(stale.len()).unwrap_or_default();
                after = last;
            }
        }
        Ok(count)
    }

    /// Seals every other value with the newest key; passes the number of values to `written` after each step. Returns
    /// the number of values that are left: services that do not know the key yet wrote them, or they are unreadable. 0:
    /// older keys are no longer needed.
    pub async fn rotate(self, mut written: impl FnMut(u64)) -> DbResult<u64> {
        self.store.begin_bound().await?;
        for column in COLUMNS {
            let mut after = column.key.start().to_owned();
            while let Some((stale, last)) = self.scan(column, &after).await? {
                for keys in bounded(stale) {
                    written(self.renew(column, keys).await?);
                }
                after = last;
            }
        }
        let left = self.stale_values().await?;
        if left == 0 {
            self.store.check_keys().await.map_err(store::seal_check::KeyError::into_db)?;
            self.store.forget_old_keys().await?;
        }
        Ok(left)
    }

    /// The stale rows among the next ones with their sizes, and the last row of all; `None` when there are no more.
    async fn scan(self, column: &Column, after: &str) -> DbResult<Option<(Vec<(String, i64)>, String)>> {
        let Some(heads) = self.store.sealer().heads() else { return Ok(None) };
        let query = diesel::sql_query(column.scan()).bind::<Text, _>(after).bind::<Text, _>(column.head(&heads));
        let rows: Vec<Scanned> = query.load(&mut *self.store.conn().await?).await?;
        let Some(last) = rows.last().map(|row| row.k.clone()) else { return Ok(None) };
        Ok(Some((rows.into_iter().filter(|row| row.stale).map(|row| (row.k, row.size)).collect(), last)))
    }

    /// Writes the values of a few rows again; repeats rows that a service changed at the same time.
    async fn renew(self, column: &Column, keys: Vec<String>) -> DbResult<u64> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.renew_once(column, &keys).await {
                Err(error) if error.is_unavailable() => tracing::warn!(%error, "writing anew once more"),
                answer => return answer,
            }
            reconnect.pause().await;
        }
    }

    async fn renew_once(self, column: &Column, keys: &[String]) -> DbResult<u64> {
        let mut conn = self.store.conn().await?;
        let query = diesel::sql_query(column.select()).bind::<Array<Text>, _>(keys);
        let values: Vec<Value> = query.load(&mut *conn).await?;
        let (mut keys, mut old, mut new, mut hashes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for value in values {
            match column.renewed(self.store.sealer(), &value) {
                Ok((renewed, hash)) => {
                    new.push(renewed);
                    hashes.push(hash);
                    keys.push(value.k);
                    old.push(value.v);
                }
                // It stays as it is and counts as left.
                Err(error) => {
                    let Column { table, name, .. } = column;
                    tracing::error!(table, column = name, row = value.k, %error, "a value cannot be written anew");
                }
            }
        }
        let query = diesel::sql_query(column.update())
            .bind::<Array<Text>, _>(keys)
            .bind::<Array<Binary>, _>(old)
            .bind::<Array<Binary>, _>(new)
            .bind::<Array<Nullable<Binary>>, _>(hashes);
        let rows = query.execute(&mut *conn).await?;
        Ok(u64::try_from(rows).unwrap_or_default())
    }
}

/// Groups of keys whose values fit into memory together.
fn bounded(keys: Vec<(String, i64)>) -> Vec<Vec<String>> {
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut bytes = 0;
    for (key, size) in keys {
        bytes += size;
        match groups.last_mut().filter(|group| group.len() < ROWS && bytes <= BYTES) {
            Some(group) => group.push(key),
            None => {
                bytes = size;
                groups.push(vec![key]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_what_fits_into_memory_and_at_least_one() {
        let sizes = |sizes: &[i64]| -> Vec<usize> {
            bounded(sizes.iter().map(|size| (String::new(), *size)).collect()).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[BYTES + 1, 1, 1]), [1, 2]);
        assert_eq!(sizes(&[BYTES / 2, BYTES / 2, 1]), [2, 1]);
        assert_eq!(sizes(&[1; ROWS + 1]), [ROWS, 1]);
        assert!(sizes(&[]).is_empty());
    }
}
