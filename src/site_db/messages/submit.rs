//! Stores what clients submit, many messages in one statement: each with its lead and its conversation, which are found or
//! made, and with its client id, which stands for one message.
//!
//! One statement is one transaction and one round trip, so a message that is submitted alone pays one commit. Row locks are
//! taken in the order of [`locks`](crate::site_db::locks), and only for the time that the statement runs on the server.
//!
//! The statement sees the database as it was when it began. If another transaction makes the same lead, conversation or
//! message meanwhile, the message is left out ([`SubmitResult::NotStored`]) and its caller stores it by
//! [`insert`](super::insert()), which asks again after each step. So does a message whose lead must learn an id.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, FromRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::status::MessageStatus;
use crate::provider::{ApiVersion, ContactIdentity, Wamid};
use crate::site_db::conversations::Author;
use crate::site_db::{Pool, SiteError, conversations, leads};

/// A message that a client wants sent.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Also the opaque id that the provider echoes.
    pub id: Uuid,
    /// The row of the number that sends it.
    pub account_id: Uuid,
    /// Whose message it is.
    pub addressee: Addressee,
    /// The provider's name of the type.
    pub kind: String,
    /// The text that a person sees.
    pub body: Option<String>,
    /// The request, byte for byte.
    pub request: Bytes,
    /// The recipient as the client wrote it.
    pub recipient: String,
    /// The quoted message.
    pub context: Option<Wamid>,
    /// The name of the client's API token.
    pub client_name: String,
    /// The client's id for this message, unique per `client_name`.
    pub client_id: Option<String>,
    /// Hash (hex) of the request: the same client id with another hash is an error.
    pub request_sha256: String,
    /// Whether an equal one whose outcome the client can't know is the same message.
    pub may_repeat: bool,
    /// The client's own `biz_opaque_callback_data`.
    pub client_opaque: Option<String>,
    /// Send it within this time or not at all.
    pub send_within: Option<SendWithin>,
    /// The Graph API version that the client asked for.
    pub api_version: Option<ApiVersion>,
    /// Who has it sent.
    pub author: Author,
    /// How long a person's message keeps programs out of its conversation.
    pub takeover: Duration,
}

/// The lead that a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressee {
    /// `leads.id`, named by the caller.
    Lead(Uuid),
    /// A person, by number or user id.
    Person(ContactIdentity),
    /// A group, by the provider's id.
    Group(String),
}

/// How long a client waits for its message to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWithin {
    /// For the message and for each one of the same conversation that is before it: they are sent one after the other.
    pub each: Duration,
    /// The longest time in all.
    pub at_most: Duration,
}

/// A message as it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredMessage {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// When it was committed.
    pub created_at: OffsetDateTime,
    /// The time within which it is sent or never; `None`: no limit.
    pub send_within: Option<Duration>,
}

/// The message that was submitted with a client id.
#[derive(Debug, Clone)]
pub struct Known {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// Hash (hex) of the request; `None` for a row that another program wrote.
    pub request_sha256: Option<String>,
    /// The current status.
    pub status: MessageStatus,
    /// For a cancelled one, the reason: see [`ProblemClass`](super::ProblemClass).
    pub error_class: Option<String>,
}

/// What became of a submission.
#[derive(Debug, Clone)]
pub enum SubmitResult {
    /// It is stored as `pending`.
    Stored(StoredMessage),
    /// The client id belongs to this message, or the request repeats it and its outcome is or was unknown; nothing was
    /// stored.
    Known(Known),
    /// The lead that the caller named does not exist; nothing was stored.
    UnknownLead,
    /// A person has taken the conversation over, and the author is a program; nothing was stored.
    TakenOver,
    /// Something else changed at the same time, or its lead has something to learn; nothing was stored.
    NotStored,
}

/// The columns of `input`, in the order of the statement's parameters, with their types.
const INPUT: [(&str, &str); 23] = [
    ("id", "uuid"),
    ("account_id", "uuid"),
    ("lead_id", "uuid"),
    ("wa_id", "text"),
    ("other_form", "text"),
    ("user_id", "text"),
    ("group_phone", "text"),
    ("type", "text"),
    ("body", "text"),
    ("request", "bytea"),
    ("recipient", "text"),
    ("context_wamid", "text"),
    ("client_name", "text"),
    ("client_id", "text"),
    ("request_sha256", "text"),
    ("may_repeat", "bool"),
    ("client_opaque", "text"),
    ("send_within", "float8"),
    ("send_within_at_most", "float8"),
    ("api_version", "text"),
    ("automation", "boolean"),
    ("person", "text"),
    ("takeover", "float8"),
];

/// Most messages before one in its conversation that lengthen its time; further ones do not.
const MAX_QUEUE: u32 = 100;

/// A request without a client id from a client that waits is taken as the repeat of an equal one whose outcome has been
/// unknown for less than this, because that client could not know better; so is one whose client left without an answer, while
/// it is under way. Statuses settle nearly all within seconds.
const REPEAT_OF_UNKNOWN: &str = "15 minutes";
/// The same if the outcome became known meanwhile: the client gets the answer that was lost. Shorter, because later an equal
/// text is another message.
pub(super) const REPEAT_OF_SETTLED: &str = "1 minute";

/// Members in the order of their locks: leads, conversations, messages. `queued` counts what is before a message in its
/// conversation: what the statement sees there, and what this statement stores there before it.
pub(super) static SUBMIT: LazyLock<String> = LazyLock::new(|| {
    let names = INPUT.map(|(name, _)| name).join(", ");
    let arrays: Vec<String> = (1..)
        .zip(INPUT)
        .map(|(number, (_, kind))| format!("${number}::{kind}[]"))
        .collect();
    format!(
        "WITH input AS MATERIALIZED (SELECT * FROM unnest({}) AS i({names})), \
         known AS MATERIALIZED (SELECT i.id AS input_id, k.* FROM input i CROSS JOIN LATERAL ( \
           (SELECT m.id, m.request_sha256, m.status, m.error_class FROM public.whatsapp_messages m \
             WHERE m.client_name = i.client_name AND m.client_id = i.client_id LIMIT 1) \
           UNION ALL (SELECT m.id, m.request_sha256, m.status, m.error_class FROM public.whatsapp_messages m \
             WHERE i.may_repeat AND m.unknown_at IS NOT NULL \
               AND m.client_name = i.client_name AND m.request_sha256 = i.request_sha256 \
               AND ((m.status IN ('unknown', 'pending', 'sending') AND m.unknown_at > now() - interval '{REPEAT_OF_UNKNOWN}') \
                 OR (m.wamid IS NOT NULL AND m.unknown_at > now() - interval '{REPEAT_OF_SETTLED}')) \
             ORDER BY m.unknown_at DESC LIMIT 1)) k), \
         fresh AS MATERIALIZED (SELECT i.* FROM input i WHERE NOT EXISTS (SELECT FROM known k WHERE k.input_id = i.id)), \
         {}, {}, \
         queued AS MATERIALIZED (SELECT i.*, o.lead_id AS of_lead, o.conversation_id, \
           least(i.send_within * (row_number() OVER (PARTITION BY o.conversation_id ORDER BY i.id) \
             + CASE WHEN i.send_within IS NULL THEN 0 ELSE (SELECT count(*) FROM (SELECT FROM public.whatsapp_messages e \
                 WHERE e.conversation_id = o.conversation_id AND e.status IN ('pending', 'sending') LIMIT {MAX_QUEUE}) AS q) END), \
             i.send_within_at_most) AS within \
           FROM fresh i JOIN of_conversation o ON o.input_id = i.id WHERE NOT (i.automation AND o.paused)), \
         stored AS (INSERT INTO public.whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, \
             body, request, recipient, context_wamid, client_name, client_id, request_sha256, client_opaque, \
             next_attempt_at, send_by, api_version) \
           SELECT id, account_id, conversation_id, of_lead, 'outbound', 'pending', type, body, request, recipient, \
             context_wamid, client_name, client_id, request_sha256, client_opaque, now(), \
             now() + make_interval(secs => within), api_version FROM queued ORDER BY client_name, client_id, id \
           ON CONFLICT (client_name, client_id) DO NOTHING RETURNING id, conversation_id, lead_id, created_at) \
         SELECT i.id, s.conversation_id, s.lead_id, s.created_at, q.within, k.id AS known_id, k.request_sha256, k.status, \
           k.error_class, i.lead_id IS NOT NULL AND k.id IS NULL AND NOT EXISTS (SELECT FROM found f WHERE f.input_id = i.id) \
             AS unknown_lead, coalesce(i.automation AND o.paused, false) AS taken_over \
         FROM input i LEFT JOIN stored s ON s.id = i.id LEFT JOIN queued q ON q.id = s.id \
           LEFT JOIN known k ON k.input_id = i.id LEFT JOIN of_conversation o ON o.input_id = i.id",
        arrays.join(", "),
        leads::of_submissions(),
        conversations::of_submissions(),
    )
});

/// Why submissions are not known to be stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Certainly nothing is stored.
    #[error("nothing was stored")]
    NotStored(#[source] Arc<SiteError>),
    /// The statement was sent and its answer did not come: it may be committed, or be committed later.
    #[error("it is not known whether the message was stored")]
    InDoubt(#[source] Arc<SiteError>),
}

impl StoreError {
    /// Before anything that stores was sent.
    #[must_use]
    pub fn before(error: impl Into<SiteError>) -> Self {
        Self::NotStored(Arc::new(error.into()))
    }

    /// From the statement that stores and commits, or from a commit.
    #[must_use]
    pub fn of_commit(error: impl Into<SiteError>) -> Self {
        let error = error.into();
        if error.leaves_commit_in_doubt() {
            Self::InDoubt(Arc::new(error))
        } else {
            Self::NotStored(Arc::new(error))
        }
    }

    /// What went wrong.
    #[must_use]
    pub const fn cause(&self) -> &Arc<SiteError> {
        match self {
            Self::NotStored(error) | Self::InDoubt(error) => error,
        }
    }
}

/// Stores submissions, all in one transaction; returns what became of each, in their order. A message that several share
/// their client id for is stored once; the others are [`SubmitResult::NotStored`].
///
/// # Errors
/// See [`StoreError`].
pub async fn submit(pool: &Pool, submissions: &[Arc<Submission>]) -> Result<Vec<SubmitResult>, StoreError> {
    let arguments = arguments(submissions).map_err(|error| StoreError::before(sqlx::Error::Encode(error)))?;
    let mut connection = pool.0.acquire().await.map_err(StoreError::before)?;
    let rows: Vec<Row> = sqlx::query_as_with(SUBMIT.as_str(), arguments)
        .fetch_all(&mut connection)
        .await
        .map_err(StoreError::of_commit)?;
    pool.committed();
    let mut results: HashMap<Uuid, Row> = rows.into_iter().map(|row| (row.id, row)).collect();
    Ok(submissions
        .iter()
        .map(|submission| {
            results
                .remove(&submission.id)
                .map_or(SubmitResult::NotStored, Row::result)
        })
        .collect())
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    conversation_id: Option<Uuid>,
    lead_id: Option<Uuid>,
    created_at: Option<OffsetDateTime>,
    within: Option<f64>,
    known_id: Option<Uuid>,
    request_sha256: Option<String>,
    status: Option<MessageStatus>,
    error_class: Option<String>,
    unknown_lead: bool,
    taken_over: bool,
}

impl Row {
    fn result(self) -> SubmitResult {
        match (
            self.conversation_id,
            self.lead_id,
            self.created_at,
            self.known_id,
            self.status,
        ) {
            (Some(conversation_id), Some(lead_id), Some(created_at), ..) => SubmitResult::Stored(StoredMessage {
                id: self.id,
                conversation_id,
                lead_id,
                created_at,
                send_within: self
                    .within
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            }),
            (.., Some(id), Some(status)) => SubmitResult::Known(Known {
                id,
                request_sha256: self.request_sha256,
                status,
                error_class: self.error_class,
            }),
            _ if self.taken_over => SubmitResult::TakenOver,
            _ if self.unknown_lead => SubmitResult::UnknownLead,
            _ => SubmitResult::NotStored,
        }
    }
}

/// The columns of [`INPUT`].
fn arguments(submissions: &[Arc<Submission>]) -> Result<PgArguments, sqlx::error::BoxDynError> {
    let mut arguments = PgArguments::default();
    macro_rules! column {
        ($value:expr) => {
            arguments.add(submissions.iter().map($value).collect::<Vec<_>>())?
        };
    }
    column!(|s| s.id);
    column!(|s| s.account_id);
    column!(|s| s.addressee.lead_id());
    column!(|s| s
        .addressee
        .contact()
        .and_then(|contact| contact.wa_id.as_ref())
        .map(|id| id.as_str()));
    column!(|s| s
        .addressee
        .contact()
        .and_then(|contact| contact.wa_id.as_ref()?.other_form()));
    column!(|s| s
        .addressee
        .contact()
        .and_then(|contact| contact.user_id.as_ref())
        .map(|id| id.as_str()));
    column!(|s| s.addressee.group_phone());
    column!(|s| s.kind.as_str());
    column!(|s| s.body.as_deref());
    column!(|s| &*s.request);
    column!(|s| s.recipient.as_str());
    column!(|s| s.context.as_ref().map(Wamid::as_str));
    column!(|s| s.client_name.as_str());
    column!(|s| s.client_id.as_deref());
    column!(|s| s.request_sha256.as_str());
    column!(|s| s.may_repeat);
    column!(|s| s.client_opaque.as_deref());
    column!(|s| s.send_within.map(|within| within.each.as_secs_f64()));
    column!(|s| s.send_within.map(|within| within.at_most.as_secs_f64()));
    column!(|s| s.api_version.as_ref().map(ApiVersion::as_str));
    column!(|s| s.author == Author::Automation);
    column!(|s| s.author.person());
    column!(|s| s.author.person().map(|_| s.takeover.as_secs_f64()));
    Ok(arguments)
}

impl Addressee {
    const fn lead_id(&self) -> Option<Uuid> {
        match self {
            Self::Lead(id) => Some(*id),
            Self::Person(_) | Self::Group(_) => None,
        }
    }

    const fn contact(&self) -> Option<&ContactIdentity> {
        match self {
            Self::Person(contact) => Some(contact),
            Self::Lead(_) | Self::Group(_) => None,
        }
    }

    fn group_phone(&self) -> Option<String> {
        match self {
            Self::Group(id) => Some(leads::group_phone(id)),
            Self::Lead(_) | Self::Person(_) => None,
        }
    }
}
