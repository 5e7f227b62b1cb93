//! From a client's request to a committed `pending` row.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::client::{ClientThatWaits, Receipt};
use super::repeats::RequestKey;
use super::shared::{Sender, Shared};
use crate::failpoint;
use crate::group_commit::GroupError;
use crate::metrics;
use crate::provider::{ApiVersion, Direction, Outbound, PhoneNumberId};
use crate::realtime::{Changed, Ticket};
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::conversations::Author;
use crate::site_db::messages::{
    self, Addressee, Known, MessageRow, ProblemClass, SendWithin, StoreError, StoredMessage, Submission, SubmitResult,
};
use crate::site_db::{MessageStatus, SiteError, conversations, storable};

/// A message that a client wants sent. Validated: it is committed and sent as it is here.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// The number that sends it; must be configured.
    pub phone_number_id: PhoneNumberId,
    /// The Graph API's request body, byte for byte as it will be sent, except for our opaque id.
    pub request: Bytes,
    /// The fields that we read from `request`.
    pub outbound: Outbound,
    /// The client: the name of its API token.
    pub client_name: String,
    /// The client's id for this message: a second submission with the same id sends nothing.
    pub client_id: Option<String>,
    /// The lead that the caller named; `None`: the recipient's lead is found or created.
    pub lead_id: Option<Uuid>,
    /// Set for a client that waits: the message is sent within this time or never.
    pub send_within: Option<Duration>,
    /// Whether the client waits for the outcome, so that it may repeat its request if that is lost.
    pub waits: bool,
    /// The Graph API version that the client asked for.
    pub api_version: Option<ApiVersion>,
    /// Who has it sent.
    pub author: Author,
}

/// A message that is committed.
#[derive(Debug)]
pub struct Submitted {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The number that sends it.
    pub phone_number_id: PhoneNumberId,
    /// The row that it has just become; `None`: the client had submitted it before, with the same client id.
    pub fresh: Option<Box<MessageRow>>,
    /// Its client, as long as it is there; `None` if it does not wait with a limit.
    pub(super) client: Option<ClientThatWaits>,
    /// What the message has in common with its repeats.
    key: RequestKey,
    shared: Arc<Shared>,
    /// How long its client waits; `None`: no limit.
    pub(super) send_within: Option<Duration>,
    /// Registered before anybody could send it, so that no outcome is missed.
    pub(super) waiting: (Ticket, Changed),
}

impl Submitted {
    /// Whether the client had submitted it before, with the same client id.
    #[must_use]
    pub const fn is_duplicate(&self) -> bool {
        self.fresh.is_none()
    }

    /// For the answer: to be told if its client probably did not read it.
    #[must_use]
    pub fn receipt(&self) -> Receipt {
        Receipt::new(Arc::clone(&self.shared), self.key.clone(), self.id)
    }

    /// The message that this one repeats, instead of it.
    pub(super) fn instead(&self, id: Uuid) -> Self {
        Self {
            id,
            phone_number_id: self.phone_number_id.clone(),
            fresh: None,
            client: None,
            key: self.key.clone(),
            shared: Arc::clone(&self.shared),
            send_within: self.send_within,
            waiting: register(&self.shared, id),
        }
    }
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The number is not one of ours.
    #[error("the number is not configured")]
    UnknownNumber,
    /// The lead does not exist.
    #[error("the lead does not exist")]
    UnknownLead,
    /// A person has taken the conversation over, and a program wants to send. Decided in the transaction that would store the message.
    #[error("a person has taken the conversation over (conversations.automation_paused_until)")]
    TakenOver,
    /// The client used the same client id for another request.
    #[error("the client's id was used for another message")]
    ClientIdReused {
        /// The message that was submitted with this client id.
        id: Uuid,
    },
    /// Too many messages wait to be stored.
    #[error("too many messages wait to be stored")]
    Overloaded,
    /// The Site DB could not store it: nothing is stored.
    #[error("store the message")]
    Site(#[source] Arc<SiteError>),
    /// The Site DB's answer was lost: it may be stored, and then it is sent.
    #[error("it is not known whether the message was stored")]
    InDoubt {
        /// The id that it has if it is stored.
        id: Uuid,
        /// Why the answer was lost.
        #[source]
        source: Arc<SiteError>,
    },
}

impl SubmitError {
    fn of(error: StoreError, id: Uuid) -> Self {
        match error {
            StoreError::NotStored(error) => Self::Site(error),
            StoreError::InDoubt(source) => Self::InDoubt { id, source },
        }
    }
}

impl From<SiteError> for SubmitError {
    fn from(error: SiteError) -> Self {
        Self::Site(Arc::new(error))
    }
}

/// Attempts at a submission whose client id is taken when the row is inserted, but not found when it is looked up.
const ATTEMPTS: usize = 3;
/// How long a message is looked for after the answer to its storing was lost: a restart of the Site DB takes seconds, and so
/// may the client's patience.
const IN_DOUBT: Duration = Duration::from_secs(6);
/// First and longest wait before it is looked for again.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// Longest time that a client of the Graph-compatible route waits behind others of the same conversation, before its own
/// message is sent. With a call's time-out and the lease's slack below the time that a request may take.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

pub(super) async fn submit(shared: &Arc<Shared>, message: NewMessage) -> Result<Submitted, SubmitError> {
    let sender = shared
        .senders
        .get(&message.phone_number_id)
        .ok_or(SubmitError::UnknownNumber)?;
    let account_id = sender.account_id(&shared.pool).await?;
    let submission = Arc::new(submission(&message, account_id, shared.settings.takeover));
    let key = RequestKey::of(&submission);
    if let Some(known) = repeated(shared, &message, &submission, &key).await? {
        return known_already(shared, sender, &message, &submission, &known).await;
    }
    // It may be stored even if the client leaves now.
    let client = message.send_within.map(|_| {
        let may_repeat = message.client_id.is_none();
        shared.repeats.begins(key, submission.id, may_repeat);
        ClientThatWaits::new(shared, submission.id)
    });
    let submitted = match store_once(shared, sender, &message, &submission).await {
        Err(SubmitError::InDoubt { source, .. }) => find_out(shared, sender, &message, &submission, source).await,
        submitted => submitted,
    };
    match (submitted, client) {
        (Ok(mut submitted), Some(client)) if submitted.id == submission.id => {
            submitted.client = Some(client);
            Ok(submitted)
        }
        // It may be stored. Its client is taken as one that left without an answer, so that a repeat is recognised.
        (Err(error @ SubmitError::InDoubt { .. }), client) => {
            drop(client);
            Err(error)
        }
        (submitted, client) => {
            // Nothing is stored under its id.
            if let Some(client) = client {
                client.done();
            }
            submitted
        }
    }
}

/// The message that the request repeats, if this process knows it.
async fn repeated(
    shared: &Arc<Shared>,
    message: &NewMessage,
    submission: &Submission,
    key: &RequestKey,
) -> Result<Option<Known>, SubmitError> {
    if message.client_id.is_some() || !message.waits {
        return Ok(None);
    }
    let Some(first) = shared.repeats.repeated_by_request(key, submission.id) else {
        return Ok(None);
    };
    let first = shared.stands_for_repeats(first).await.map_err(SubmitError::Site)?;
    Ok(first.map(|first| Known {
        id: first.id,
        request_sha256: Some(submission.request_sha256.clone()),
        status: first.status,
        error_class: first.error_class,
    }))
}

async fn store_once(
    shared: &Arc<Shared>,
    sender: &Sender,
    message: &NewMessage,
    submission: &Arc<Submission>,
) -> Result<Submitted, SubmitError> {
    let failed = |error: StoreError| SubmitError::of(error, submission.id);
    for _ in 0..ATTEMPTS {
        let result = match shared.submissions.commit(Arc::clone(submission)).await {
            Ok(result) => result,
            Err(GroupError::Full) => return Err(SubmitError::Overloaded),
            Err(GroupError::Failed(error)) => return Err(failed(StoreError::clone(&error))),
            Err(GroupError::Abandoned) => return Err(failed(StoreError::of_commit(SiteError::Stopped))),
        };
        let stored = match result {
            SubmitResult::Stored(stored) => stored,
            SubmitResult::UnknownLead => return Err(SubmitError::UnknownLead),
            SubmitResult::TakenOver => return Err(SubmitError::TakenOver),
            SubmitResult::Known(known) => return known_already(shared, sender, message, submission, &known).await,
            SubmitResult::NotStored => match store(shared, submission).await? {
                Some(stored) => stored,
                None => continue,
            },
        };
        failpoint::reach(failpoint::name::SEND_AFTER_PENDING);
        metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Pending.as_str());
        let row = MessageRow::submitted(submission, &stored, message.phone_number_id.clone());
        let waiting = register(shared, stored.id);
        sender.stored(&stored);
        return Ok(Submitted {
            id: stored.id,
            phone_number_id: message.phone_number_id.clone(),
            fresh: Some(Box::new(row)),
            client: None,
            key: RequestKey::of(submission),
            shared: Arc::clone(shared),
            send_within: stored.send_within,
            waiting,
        });
    }
    // Taken but not found, three times: something deletes the rows as fast as they are inserted.
    Err(SiteError::Vanished("whatsapp_messages").into())
}

/// The answer to the storing of the message was lost: looks for its row, and stores it again under the same id if there is none.
/// If the first statement still runs, the second one waits for it, because both insert the same primary key.
async fn find_out(
    shared: &Arc<Shared>,
    sender: &Sender,
    message: &NewMessage,
    submission: &Arc<Submission>,
    lost: Arc<SiteError>,
) -> Result<Submitted, SubmitError> {
    let id = submission.id;
    let looking = async {
        for tries in 1.. {
            if !shutdown::sleep(backoff(tries, LOOK_AGAIN.0, LOOK_AGAIN.1), &shared.stop).await {
                break;
            }
            // Before it is read, so that no outcome is missed.
            let waiting = register(shared, id);
            match shared.find(id).await {
                Ok(Some(row)) => {
                    metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Pending.as_str());
                    sender.ask_for_scan();
                    return Some(Ok(Submitted {
                        id,
                        phone_number_id: message.phone_number_id.clone(),
                        fresh: Some(Box::new(row)),
                        client: None,
                        key: RequestKey::of(submission),
                        shared: Arc::clone(shared),
                        send_within: message.send_within,
                        waiting,
                    }));
                }
                Ok(None) => match store_once(shared, sender, message, submission).await {
                    // The id is taken, because the first statement was committed meanwhile; or it is still not known.
                    Err(SubmitError::Site(_) | SubmitError::InDoubt { .. } | SubmitError::Overloaded) => {}
                    known => return Some(known),
                },
                Err(_) => {}
            }
        }
        None
    };
    let found = tokio::time::timeout(IN_DOUBT, looking).await.ok().flatten();
    found.unwrap_or(Err(SubmitError::InDoubt { id, source: lost }))
}

fn register(shared: &Shared, id: Uuid) -> (Ticket, Changed) {
    let ticket = shared.waiters.register(id);
    let changed = ticket.changed();
    (ticket, changed)
}

fn submission(message: &NewMessage, account_id: Uuid, takeover: Duration) -> Submission {
    let outbound = &message.outbound;
    let addressee = match (message.lead_id, &outbound.contact) {
        (Some(lead_id), _) => Addressee::Lead(lead_id),
        (None, Some(contact)) => Addressee::Person(contact.clone()),
        (None, None) => Addressee::Group(outbound.recipient.clone()),
    };
    Submission {
        // Time-ordered: the index grows at its end, and messages of one process with equal `created_at` keep their order.
        id: Uuid::now_v7(),
        account_id,
        addressee,
        kind: outbound.kind.clone(),
        body: outbound.text.as_deref().map(storable),
        request: message.request.clone(),
        recipient: outbound.recipient.clone(),
        context: outbound.context.clone(),
        client_name: message.client_name.clone(),
        client_id: message.client_id.clone(),
        request_sha256: fingerprint(message),
        may_repeat: message.waits && message.client_id.is_none(),
        client_opaque: outbound.client_opaque.as_deref().map(storable),
        send_within: message.send_within.map(|each| SendWithin {
            each,
            at_most: each.max(LONGEST_WAIT),
        }),
        api_version: message.api_version.clone(),
        author: message.author.clone(),
        takeover,
    }
}

/// A hash of everything that decides what is sent, from which number, and for which lead. A client id stands for one
/// fingerprint.
fn fingerprint(message: &NewMessage) -> String {
    let mut hash = Sha256::new();
    let lead = message.lead_id.map(|id| id.to_string()).unwrap_or_default();
    for part in [
        message.phone_number_id.as_str().as_bytes(),
        lead.as_bytes(),
        &message.request,
    ] {
        // With its length, so that different lists of parts never give the same bytes.
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// Returns the message that was submitted with this client id, if the request is the same. If it was cancelled because
/// its client stopped waiting, makes it due again.
async fn known_already(
    shared: &Arc<Shared>,
    sender: &Sender,
    message: &NewMessage,
    submission: &Submission,
    known: &Known,
) -> Result<Submitted, SubmitError> {
    if known.request_sha256.as_ref() != Some(&submission.request_sha256) {
        return Err(SubmitError::ClientIdReused { id: known.id });
    }
    let waiting = register(shared, known.id);
    if known.status == MessageStatus::Cancelled
        && known.error_class.as_deref() == Some(ProblemClass::WaitElapsed.as_str())
    {
        // Changes nothing if another request of the same client has revived it in the meantime.
        if !messages::revive(&shared.pool, known.id, message.send_within, &submission.author).await? {
            return Err(SubmitError::TakenOver);
        }
        sender.queue().ask_for_scan();
    }
    sender.wake.notify_one();
    Ok(Submitted {
        id: known.id,
        phone_number_id: message.phone_number_id.clone(),
        fresh: None,
        client: message.send_within.map(|_| ClientThatWaits::new(shared, known.id)),
        key: RequestKey::of(submission),
        shared: Arc::clone(shared),
        send_within: message.send_within,
        waiting,
    })
}

/// Commits one row, step by step: for the rare cases that the statement for many leaves out. `None`: the client id was taken
/// in the meantime, and nothing is stored.
async fn store(shared: &Shared, submission: &Submission) -> Result<Option<StoredMessage>, SubmitError> {
    let mut transaction = shared.pool.begin().await?;
    let account_id = submission.account_id;
    let link = match &submission.addressee {
        Addressee::Lead(lead_id) => conversations::with_lead(&mut transaction, account_id, *lead_id)
            .await?
            .ok_or(SubmitError::UnknownLead)?,
        Addressee::Person(contact) => conversations::link_recipient(&mut transaction, account_id, contact).await?,
        Addressee::Group(group_id) => conversations::link_group(&mut transaction, account_id, group_id).await?,
    };
    // Before the message: see `site_db::locks` for the order.
    let (author, takeover) = (&submission.author, submission.takeover);
    if !conversations::touch_outbound(&mut transaction, link.conversation_id, author, takeover).await? {
        transaction.rollback().await?;
        return Err(SubmitError::TakenOver);
    }
    let Some(stored) = messages::insert(&mut transaction, submission, link).await? else {
        // Also removes a lead or conversation that was inserted for this message.
        transaction.rollback().await?;
        return Ok(None);
    };
    transaction
        .commit()
        .await
        .map_err(|error| SubmitError::of(StoreError::of_commit(error), submission.id))?;
    Ok(Some(stored))
}
