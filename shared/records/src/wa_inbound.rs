//! Messages from people over WhatsApp: each is stored once, with number and content sealed.
//!
//! A chat is found by the fingerprint of its number. Content cannot be searched in the database: a search decrypts the
//! newest messages that match everything else, up to a limit, and looks into them.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, seal::Column};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::WhatsappInboundStore;

/// Messages that one search looks into at most, newest first.
pub const SEARCH_MAX: i64 = 5_000;
/// Messages opened at once.
const SEARCH_STEP: i64 = 500;

/// The content of a message.
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
    /// A log never shows content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InboundContent(…)")
    }
}

/// A message to keep.
#[derive(Clone)]
pub struct NewInbound {
    /// The tenant of the message.
    pub tenant: TenantId,
    /// The session it came to.
    pub session: Uuid,
    /// Its id at WAHA.
    pub waha_id: String,
    /// The sender: E.164 if the number is known, else the chat id.
    pub sender: String,
    /// The recipient, in the same form; empty if WAHA does not name it.
    pub recipient: String,
    /// `text`, `image`, `document`, …
    pub kind: String,
    /// The content.
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
    /// The tenant of the message.
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
    /// The content.
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

/// Selects messages; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct InboundFilter {
    /// The session they came to.
    pub session: Option<Uuid>,
    /// The sender: E.164 or a chat id.
    pub sender: Option<String>,
    /// Received at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Received before this time.
    pub to: Option<DateTime<Utc>>,
    /// Words of the content, or part of a number; case does not matter. Searched in the newest [`SEARCH_MAX`] messages.
    pub search: Option<String>,
}

row! {
    struct InboundRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        session_id: Uuid as SqlUuid,
        waha_id: String as Text,
        sender: String as Text,
        recipient: String as Text,
        kind: String as Text,
        content: Vec<u8> as Binary,
        country: Option<String> as Nullable<Text>,
        sent_at: DateTime<Utc> as Timestamptz,
        raw_sent_at: String as Text,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

/// The realm of a tenant's fingerprints. It is that of its recipients, so one number is found in both directions.
fn realm(tenant: TenantId) -> String {
    tenant.to_string()
}

impl WhatsappInboundStore<'_> {
    /// Stores messages in one commit; messages that exist stay unchanged. Returns the number of new ones.
    pub async fn insert(self, messages: Vec<NewInbound>) -> DbResult<usize> {
        if messages.is_empty() {
            return Ok(0);
        }
        let sealer = self.store.sealer();
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
        let keep = Keep {
            ids: rows.iter().map(|_| Uuid::now_v7()).collect(),
            tenants: rows.iter().map(|row| row.tenant.0).collect(),
            sessions: rows.iter().map(|row| row.session).collect(),
            waha_ids: text(|row| &row.waha_id),
            chat_hashes: hashes.collect(),
            senders: number(sealed::INBOUND_SENDER, |row| &row.sender)?,
            recipients: number(sealed::INBOUND_RECIPIENT, |row| &row.recipient)?,
            kinds: text(|row| &row.kind),
            contents: contents.collect::<Result<_, _>>()?,
            countries: rows.iter().map(|row| row.country.clone()).collect(),
            sent_at: rows.iter().map(|row| row.sent_at).collect(),
            raw_sent_at: text(|row| &row.raw_sent_at),
        };
        keep.query().run(self.store).await
    }

    /// Up to `limit` messages of a tenant, newest first, older than `before`, after skipping `skip` of them. With a
    /// search it looks into at most [`SEARCH_MAX`] messages.
    pub async fn list(
        self,
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
        self,
        tenant: TenantId,
        filter: &InboundFilter,
        before: Option<Uuid>,
        skip: i64,
        limit: i64,
    ) -> DbResult<Vec<Inbound>> {
        let before = before.unwrap_or(Uuid::max());
        let &InboundFilter { session, from, to, .. } = filter;
        let query = match &filter.sender {
            None => List { tenant: tenant.0, before, session, from, to, limit, skip }.query(),
            Some(sender) => {
                let hashes = self.store.sealer().fingerprints(&realm(tenant), sender);
                let chat_hashes = hashes.iter().map(|hash| hash.to_vec()).collect();
                ListOfChat { tenant: tenant.0, before, session, from, to, chat_hashes, limit, skip }.query()
            }
        };
        Ok(self.opened_inbound(query.within(Some(tenant)).rows(self.store).await?))
    }

    /// One message of a tenant.
    pub async fn find(self, tenant: TenantId, id: Uuid) -> DbResult<Option<Inbound>> {
        let rows = One { tenant: tenant.0, id }.query().within(Some(tenant)).rows(self.store).await?;
        Ok(self.opened_inbound(rows).into_iter().next())
    }

    /// Those of these messages that still exist.
    pub async fn messages(self, ids: Vec<Uuid>) -> DbResult<Vec<Inbound>> {
        Ok(self.opened_inbound(These { ids }.query().rows(self.store).await?))
    }

    /// Values that cannot be decrypted are left out.
    fn opened_inbound(self, rows: Vec<InboundRow>) -> Vec<Inbound> {
        let open = |row: InboundRow| {
            let tenant = TenantId(row.tenant_id);
            Some(Inbound {
                id: row.id,
                tenant,
                session: row.session_id,
                waha_id: row.waha_id,
                sender: self.store.opened_text(sealed::INBOUND_SENDER.of(tenant), row.sender)?,
                recipient: self.store.opened_text(sealed::INBOUND_RECIPIENT.of(tenant), row.recipient)?,
                kind: row.kind,
                content: serde_json::from_slice(&self.store.opened(sealed::INBOUND_CONTENT.of(tenant), row.content)?)
                    .unwrap_or_default(),
                country: row.country,
                sent_at: row.sent_at,
                raw_sent_at: row.raw_sent_at,
                created_at: row.created_at,
            })
        };
        rows.into_iter().filter_map(open).collect()
    }
}

impl Inbound {
    /// Whether its text or a number contains `words` (in lower case).
    fn says(&self, words: &str) -> bool {
        [&self.content.body, &self.sender, &self.recipient].iter().any(|text| text.to_lowercase().contains(words))
    }
}

sql!(Keep in "wa_inbound/keep.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, tenants: Vec<i32> as Array<Int4>, sessions: Vec<Uuid> as Array<SqlUuid>,
    waha_ids: Vec<String> as Array<Text>, chat_hashes: Vec<Vec<u8>> as Array<Binary>,
    senders: Vec<String> as Array<Text>, recipients: Vec<String> as Array<Text>, kinds: Vec<String> as Array<Text>,
    contents: Vec<Vec<u8>> as Array<Binary>, countries: Vec<Option<String>> as Array<Nullable<Text>>,
    sent_at: Vec<DateTime<Utc>> as Array<Timestamptz>, raw_sent_at: Vec<String> as Array<Text>
});
sql!(List in "wa_inbound/list.sql" {
    tenant: i32 as Int4, before: Uuid as SqlUuid, session: Option<Uuid> as Nullable<SqlUuid>,
    from: Option<DateTime<Utc>> as Nullable<Timestamptz>, to: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    limit: i64 as Int8, skip: i64 as Int8
} -> InboundRow);
sql!(ListOfChat in "wa_inbound/list_of_chat.sql" {
    tenant: i32 as Int4, before: Uuid as SqlUuid, session: Option<Uuid> as Nullable<SqlUuid>,
    from: Option<DateTime<Utc>> as Nullable<Timestamptz>, to: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    chat_hashes: Vec<Vec<u8>> as Array<Binary>, limit: i64 as Int8, skip: i64 as Int8
} -> InboundRow);
sql!(One in "wa_inbound/one.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid } -> InboundRow);
sql!(These in "wa_inbound/these.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> InboundRow);
statements!(Keep, List, ListOfChat, One, These);
