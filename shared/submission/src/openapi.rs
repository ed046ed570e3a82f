//! The schemas of submissions, for the OpenAPI document.

use chrono::{DateTime, Utc};
use utoipa::ToSchema;
use web::openapi::SubscriptionBody;

/// The channels, as the description spells them.
#[derive(ToSchema)]
#[schema(as = Channel, rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are the domain's; a test compares them")]
pub enum ChannelWord {
    Email,
    Sms,
    Push,
    Webhook,
    InApp,
    Whatsapp,
}

/// The priorities, as the description spells them.
#[derive(ToSchema)]
#[schema(as = Priority, rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are the domain's; a test compares them")]
pub enum PriorityWord {
    Low,
    Normal,
    High,
    Urgent,
}

/// The fields that all submissions share.
///
/// Accepted spellings beside these: `subject` for `title`, `text` for `message`, `payload` for `data`, `userId`,
/// `eventType` and `event_type` for `type`, `actionUrl`, `scheduledAt` and `scheduled_for`, `expiresAt`.
#[derive(ToSchema)]
#[schema(as = SubmissionHead)]
pub struct SharedBody {
    /// The kind of address; `in-app` is accepted for `in_app`.
    pub channel: ChannelWord,
    /// The person.
    #[schema(max_length = 200)]
    pub user_id: Option<String>,
    /// Subject of a mail, title of a notification.
    #[schema(max_length = 998)]
    pub title: Option<String>,
    /// The plain part.
    pub message: Option<String>,
    /// The HTML part, of a mail.
    pub html: Option<String>,
    /// The category.
    #[schema(max_length = 200)]
    pub category: Option<String>,
    /// Selects the lane; default `normal`.
    pub priority: Option<PriorityWord>,
    /// Data for the recipient's program. If it is the only content, it is a webhook's whole body.
    #[schema(value_type = Option<serde_json::Value>)]
    pub data: Option<serde_json::Value>,
    /// The producer's own notes, returned unchanged; at most 8 KiB.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<serde_json::Value>,
    /// When to send it, within a year; a past time means now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// Files that travel with a mail, 20 MB together.
    #[schema(max_items = 50, required = false)]
    pub attachments: Vec<AttachmentBody>,
    /// The kind of notification, shown in the inbox and in webhook bodies.
    #[schema(max_length = 200)]
    pub r#type: Option<String>,
    /// The target of a click on an in-app notification.
    #[schema(max_length = 2048)]
    pub action_url: Option<String>,
    /// Like the header `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 200)]
    pub idempotency_key: Option<String>,
    /// WhatsApp: the session that sends it, by id or name; default: the only one, or the one called `default`.
    #[schema(max_length = 200)]
    pub session_id: Option<String>,
    /// WhatsApp: over the session's pace `queue` (it waits) or `reject` (429); default: the session's setting.
    #[schema(example = "queue")]
    pub on_limit: Option<String>,
    /// WhatsApp: accept it although the session is not WORKING; it waits until the session works.
    pub queue_when_offline: Option<bool>,
    /// WhatsApp: a file; the text is its caption.
    pub media: Option<MediaBody>,
    /// When it may disturb the person by e-mail, text message, push or WhatsApp; default: the window of its type.
    pub send_window: Option<SendWindowBody>,
}

/// On some days from one time of day to another, in the recipient's local time (no zone: UTC). Outside of it a delivery
/// is `scheduled` for the next opening, with the `reason` `send_window`.
#[derive(ToSchema)]
#[schema(as = SendWindow)]
pub struct SendWindowBody {
    /// The days on which it opens, of `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`; default: every day.
    #[schema(min_items = 1, example = json!(["mon", "tue", "wed", "thu", "fri"]))]
    pub days: Option<Vec<String>>,
    /// The first minute in it.
    #[schema(example = "09:00")]
    pub from: String,
    /// The first minute after the window. It differs from `from`; it is before `from` if the window crosses midnight;
    /// `24:00` is the end of the day.
    #[schema(example = "17:00")]
    pub to: String,
}

/// A file of a WhatsApp message. Either `data` or `url`.
#[derive(ToSchema)]
#[schema(as = Media)]
pub struct MediaBody {
    /// Its media type; it decides how WhatsApp shows it.
    #[schema(example = "image/jpeg")]
    pub mimetype: String,
    /// The name shown.
    pub filename: Option<String>,
    /// Its bytes in base64, 20 MB at most.
    #[schema(format = Byte)]
    pub data: Option<String>,
    /// Where WAHA fetches it.
    pub url: Option<String>,
}

/// A file.
#[derive(ToSchema)]
#[schema(as = Attachment)]
pub struct AttachmentBody {
    /// Its name.
    pub filename: String,
    /// Its media type.
    #[schema(example = "application/pdf")]
    pub content_type: String,
    /// Its bytes in base64.
    #[schema(format = Byte)]
    pub content: String,
}

/// An address, or a browser's subscription to Web Push; at most 2048 bytes.
#[derive(ToSchema)]
#[schema(as = Recipient)]
#[serde(untagged)]
pub enum RecipientBody {
    /// Address, phone number (E.164), device token, URL or user id; a subscription may also be given as JSON text.
    Text(String),
    /// The result of `PushSubscription.toJSON()` in a browser.
    Subscription(SubscriptionBody),
}

/// One message.
#[derive(ToSchema)]
#[schema(as = Submission)]
pub struct SendBody {
    /// The recipient. `to` and `url` are accepted too. It can be left out if `user_id` is given, except for `webhook`:
    /// the message then goes to the person's inbox, address, phone or devices.
    pub recipient: Option<RecipientBody>,
    /// The rest.
    #[schema(inline)]
    #[serde(flatten)]
    pub shared: SharedBody,
}

/// One content for many recipients. Either `recipients` or `user_ids`.
#[derive(ToSchema)]
#[schema(as = BulkSubmission)]
pub struct BulkBody {
    /// To whom, by address.
    #[schema(min_items = 1, max_items = 10_000)]
    pub recipients: Option<Vec<RecipientBody>>,
    /// The recipients, by user id: inboxes, or the known addresses, phones or devices of the people.
    #[schema(min_items = 1, max_items = 10_000)]
    pub user_ids: Option<Vec<String>>,
    /// The rest.
    #[schema(inline)]
    #[serde(flatten)]
    pub shared: SharedBody,
}
