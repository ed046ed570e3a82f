//! Messages from people over WhatsApp: each once, numbers and content sealed.
//!
//! A chat is found by the fingerprint of its number. Content cannot be searched in the database: a search opens the newest
//! messages that match everything else, up to a bound, and looks into them.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, seal::Column};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{DbResult, Statement, Store, sealed, statement};

/// Messages that one search looks into at most, newest first.
pub const SEARCH_MAX: i64 = 5_000;
/// Messages opened at once.
const SEARCH_STEP: i64 = 500;

/// What a message says.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InboundContent {
    /// Its text, or the caption of its file.
    #[serde(default)]
    pub body: String,
    /// Its file, as WAHA describes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<Value>,
}

impl std::fmt::Debug for InboundContent {
    /// Content never shows in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InboundContent(…)")
    }
}

/// A message to keep.
#[derive(Clone)]
pub struct NewInbound {
    /// Whose it is.
    pub tenant: TenantId,
    /// The session it came to.
    pub session: Uuid,
    /// Its id at WAHA.
    pub waha_id: String,
    /// From whom: E.164 where the number is known, else the chat id.
    pub sender: String,
    /// To whom, in the same form; empty where WAHA does not say.
    pub recipient: String,
    /// `text`, `image`, `document`, …
    pub kind: String,
    /// What it says.
    pub content: InboundContent,
    /// The sender's country prefix, `+49`.
    pub country: Option<String>,
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// When it was sent, as WAHA wrote it.
    pub raw_sent_at: String,
}

/// A message as it is kept.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Our id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The session it came to.
    pub session: Uuid,
    /// Its id at WAHA.
    pub waha_id: String,
    /// From whom.
    pub sender: String,
    /// To whom.
    pub recipient: String,
    /// `text`, `image`, `document`, …
    pub kind: String,
    /// What it says.
    pub content: InboundContent,
    /// The sender's country prefix.
    pub country: Option<String>,
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// When it was sent, as WAHA wrote it.
    pub raw_sent_at: String,
    /// When we had it.
    pub created_at: DateTime<Utc>,
}

/// Which messages. What is not given does not restrict.
#[derive(Clone, Debug, Default)]
pub struct InboundFilter {
    /// The session they came to.
    pub session: Option<Uuid>,
    /// Who wrote them: E.164 or a chat id.
    pub sender: Option<String>,
    /// Received at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Received before this time.
    pub to: Option<DateTime<Utc>>,
    /// Words of the content, or part of a number, in any case; looked for in the newest [`SEARCH_MAX`] messages.
    pub search: Option<String>,
}

type Row = (
    (Uuid, i32, Uuid, String, String, String),
    (String, Vec<u8>, Option<String>, DateTime<Utc>, String, DateTime<Utc>),
);
type SqlRow =
    ((SqlUuid, Int4, SqlUuid, Text, Text, Text), (Text, Binary, Nullable<Text>, Timestamptz, Text, Timestamptz));

/// The realm of a tenant's fingerprints: that of its recipients, so that one number is found in both directions.
fn realm(tenant: TenantId) -> String {
    tenant.to_string()
}

/// A fixed text that reads messages.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant_id, session_id, waha_id, sender, recipient, ",
            "kind, content, country, sent_at, raw_sent_at, created_at FROM wa_inbound ",
            $rest
        )
    };
}

impl Store {
    /// Keeps messages in one commit; those that are kept already are left as they are. Says how many are new.
    pub async fn keep_inbound(&self, messages: Vec<NewInbound>) -> DbResult<usize> {
        if messages.is_empty() {
            return Ok(0);
        }
        let sealer = self.sealer();
        let mut rows = messages;
        rows.sort_by(|a, b| (a.session, &a.waha_id).cmp(&(b.session, &b.waha_id)));
        let text = |of: fn(&NewInbound) -> &str| rows.iter().map(|row| of(row).to_owned()).collect::<Vec<_>>();
        let number = |column: Column, of: fn(&NewInbound) -> &str| {
            rows.iter().map(|row| sealer.seal_text(column.of(row.tenant), of(row))).collect::<Result<Vec<_>, _>>()
        };
        let contents = rows.iter().map(|row| {
            let content = serde_json::to_vec(&row.content).unwrap_or_default();
            sealer.seal(sealed::INBOUND_CONTENT.of(row.tenant), &content)
        });
        let hashes = rows.iter().map(|row| sealer.fingerprint(&realm(row.tenant), &row.sender).to_vec());
        let query = statement::<()>(KEEP)
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(rows.iter().map(|row| row.tenant.0).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.session).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(text(|row| &row.waha_id))
            .bind::<Array<Binary>, _>(hashes.collect::<Vec<_>>())
            .bind::<Array<Text>, _>(number(sealed::INBOUND_SENDER, |row| &row.sender)?)
            .bind::<Array<Text>, _>(number(sealed::INBOUND_RECIPIENT, |row| &row.recipient)?)
            .bind::<Array<Text>, _>(text(|row| &row.kind))
            .bind::<Array<Binary>, _>(contents.collect::<Result<Vec<_>, _>>()?)
            .bind::<Array<Nullable<Text>>, _>(rows.iter().map(|row| row.country.clone()).collect::<Vec<_>>())
            .bind::<Array<Timestamptz>, _>(rows.iter().map(|row| row.sent_at).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(text(|row| &row.raw_sent_at));
        query.run(self).await
    }

    /// Up to `limit` messages of a tenant, newest first, older than `before`, after skipping `skip` of them. With a search it
    /// looks into at most [`SEARCH_MAX`] messages.
    pub async fn list_inbound(
        &self,
        tenant: TenantId,
        filter: &InboundFilter,
        before: Option<Uuid>,
        skip: i64,
        limit: i64,
    ) -> DbResult<Vec<Inbound>> {
        let Some(words) = filter.search.as_deref().map(str::to_lowercase).filter(|words| !words.is_empty()) else {
            return self.page(tenant, filter, before, skip, limit).await;
        };
        let (skip, limit) = (usize::try_from(skip).unwrap_or(0), usize::try_from(limit).unwrap_or(0));
        let (mut found, mut before, mut seen) = (Vec::new(), before, 0);
        while seen < SEARCH_MAX && found.len() < skip + limit {
            let page = self.page(tenant, filter, before, 0, SEARCH_STEP).await?;
            let Some(last) = page.last() else { break };
            (before, seen) = (Some(last.id), seen + SEARCH_STEP);
            found.extend(page.into_iter().filter(|message| message.says(&words)));
        }
        Ok(found.into_iter().skip(skip).take(limit).collect())
    }

    async fn page(
        &self,
        tenant: TenantId,
        filter: &InboundFilter,
        before: Option<Uuid>,
        skip: i64,
        limit: i64,
    ) -> DbResult<Vec<Inbound>> {
        let query = |text| {
            statement(text)
                .bind::<Int4, _>(tenant.0)
                .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
                .bind::<Nullable<SqlUuid>, _>(filter.session)
                .bind::<Nullable<Timestamptz>, _>(filter.from)
                .bind::<Nullable<Timestamptz>, _>(filter.to)
        };
        let query = match &filter.sender {
            None => query(LIST),
            Some(sender) => {
                let hashes = self.sealer().fingerprints(&realm(tenant), sender);
                query(LIST_OF_CHAT)
                    .bind::<Array<Binary>, _>(hashes.iter().map(|hash| hash.to_vec()).collect::<Vec<_>>())
            }
        };
        self.inbound_of(query.bind::<Int8, _>(limit).bind::<Int8, _>(skip).within(Some(tenant))).await
    }

    /// One message of a tenant.
    pub async fn inbound(&self, tenant: TenantId, id: Uuid) -> DbResult<Option<Inbound>> {
        let query = statement(ONE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        Ok(self.inbound_of(query).await?.into_iter().next())
    }

    /// These messages, as far as they are still there.
    pub async fn inbound_messages(&self, ids: Vec<Uuid>) -> DbResult<Vec<Inbound>> {
        self.inbound_of(statement(THESE).bind::<Array<SqlUuid>, _>(ids)).await
    }

    async fn inbound_of(&self, query: Statement<SqlRow>) -> DbResult<Vec<Inbound>> {
        let rows: Vec<Row> = query.rows(self).await?;
        let open = |row: Row| {
            let ((id, tenant, session, waha_id, sender, recipient), rest) = row;
            let (kind, content, country, sent_at, raw_sent_at, created_at) = rest;
            let tenant = TenantId(tenant);
            Some(Inbound {
                id,
                tenant,
                session,
                waha_id,
                sender: self.opened_text(sealed::INBOUND_SENDER.of(tenant), sender)?,
                recipient: self.opened_text(sealed::INBOUND_RECIPIENT.of(tenant), recipient)?,
                kind,
                content: serde_json::from_slice(&self.opened(sealed::INBOUND_CONTENT.of(tenant), content)?)
                    .unwrap_or_default(),
                country,
                sent_at,
                raw_sent_at,
                created_at,
            })
        };
        Ok(rows.into_iter().filter_map(open).collect())
    }
}

impl Inbound {
    /// Whether it, or a number of it, says `words` (in small letters).
    fn says(&self, words: &str) -> bool {
        [&self.content.body, &self.sender, &self.recipient].iter().any(|text| text.to_lowercase().contains(words))
    }
}

const KEEP: &str = "
INSERT INTO wa_inbound (id, tenant_id, session_id, waha_id, chat_hash, sender, recipient, kind, content, country, sent_at, raw_sent_at)
SELECT * FROM unnest(?::uuid[], ?::int4[], ?::uuid[], ?::text[], ?::bytea[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::text[],
                     ?::timestamptz[], ?::text[])
ON CONFLICT (session_id, waha_id) DO NOTHING";

const LIST: &str = select!(
    "WHERE tenant_id = ? AND id < ? AND session_id = coalesce(?, session_id)
  AND created_at >= coalesce(?, '-infinity') AND created_at < coalesce(?, 'infinity')
ORDER BY id DESC LIMIT ? OFFSET ?"
);
const LIST_OF_CHAT: &str = select!(
    "WHERE tenant_id = ? AND id < ? AND session_id = coalesce(?, session_id)
  AND created_at >= coalesce(?, '-infinity') AND created_at < coalesce(?, 'infinity') AND chat_hash = ANY (?::bytea[])
ORDER BY id DESC LIMIT ? OFFSET ?"
);
const ONE: &str = select!("WHERE tenant_id = ? AND id = ?");
const THESE: &str = select!("WHERE id = ANY (?::uuid[])");
