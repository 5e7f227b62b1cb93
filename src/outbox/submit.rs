//! From a client's request to a committed `pending` row.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::shared::Shared;
use crate::failpoint;
use crate::metrics;
use crate::provider::{ApiVersion, Direction, Outbound, PhoneNumberId};
use crate::site_db::messages::{self, Known, ProblemClass};
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
    /// The Graph API version that the client asked for.
    pub api_version: Option<ApiVersion>,
}

/// A message that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// Whether the client had submitted it before, with the same client id.
    pub duplicate: bool,
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
    /// The client used the same client id for another request.
    #[error("the client's id was used for another message")]
    ClientIdReused {
        /// The message that was submitted with this client id.
        id: Uuid,
    },
    /// The Site DB could not store it.
    #[error("store the message")]
    Site(#[from] SiteError),
}

/// Attempts at a submission whose client id is taken when the row is inserted, but not found when it is looked up.
const ATTEMPTS: usize = 3;

pub(super) async fn submit(shared: &Shared, message: NewMessage) -> Result<Submitted, SubmitError> {
    let sender = shared
        .senders
        .get(&message.phone_number_id)
        .ok_or(SubmitError::UnknownNumber)?;
    let account_id = sender.account_id(&shared.pool).await?;
    let fingerprint = fingerprint(&message);
    for _ in 0..ATTEMPTS {
        if let Some(client_id) = &message.client_id
            && let Some(known) = messages::find_by_client_id(&shared.pool, &message.client_name, client_id).await?
        {
            let submitted = known_already(shared, &message, &fingerprint, &known).await?;
            sender.wake.notify_one();
            return Ok(submitted);
        }
        if let Some(id) = store(shared, account_id, &message, &fingerprint).await? {
            failpoint::reach(failpoint::name::SEND_AFTER_PENDING);
            metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Pending.as_str());
            sender.wake.notify_one();
            return Ok(Submitted { id, duplicate: false });
        }
    }
    // Taken but not found, three times: something deletes the rows as fast as they are inserted.
    Err(SubmitError::Site(SiteError::Vanished("whatsapp_messages")))
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
    shared: &Shared,
    message: &NewMessage,
    fingerprint: &str,
    known: &Known,
) -> Result<Submitted, SubmitError> {
    if known.request_sha256.as_deref() != Some(fingerprint) {
        return Err(SubmitError::ClientIdReused { id: known.id });
    }
    if known.status == MessageStatus::Cancelled
        && known.error_class.as_deref() == Some(ProblemClass::WaitElapsed.as_str())
    {
        // Changes nothing if another request of the same client has revived it in the meantime.
        messages::revive(&shared.pool, known.id, message.send_within).await?;
    }
    Ok(Submitted {
        id: known.id,
        duplicate: true,
    })
}

/// Commits the row and returns its id. `None`: the client id was taken in the meantime, and nothing is stored.
async fn store(
    shared: &Shared,
    account_id: Uuid,
    message: &NewMessage,
    fingerprint: &str,
) -> Result<Option<Uuid>, SubmitError> {
    let outbound = &message.outbound;
    let mut transaction = shared.pool.begin().await?;
    let link = match (message.lead_id, &outbound.contact) {
        (Some(lead_id), _) => conversations::with_lead(&mut transaction, account_id, lead_id)
            .await?
            .ok_or(SubmitError::UnknownLead)?,
        (None, Some(contact)) => conversations::link(&mut transaction, account_id, contact).await?,
        (None, None) => conversations::link_group(&mut transaction, account_id, &outbound.recipient).await?,
    };
    // Time-ordered: the index grows at its end, and messages of one process with equal `created_at` keep their order.
    let id = Uuid::now_v7();
    let inserted = messages::insert(
        &mut transaction,
        &messages::PendingMessage {
            id,
            account_id,
            conversation_id: link.conversation_id,
            lead_id: link.lead_id,
            kind: &outbound.kind,
            body: outbound.text.as_deref().map(storable).as_deref(),
            request: &message.request,
            recipient: &outbound.recipient,
            context: outbound.context.as_ref(),
            client_name: &message.client_name,
            client_id: message.client_id.as_deref(),
            request_sha256: fingerprint,
            client_opaque: outbound.client_opaque.as_deref().map(storable).as_deref(),
            send_within: message.send_within,
            api_version: message.api_version.as_ref(),
        },
    )
    .await?;
    if !inserted {
        // Also removes a lead or conversation that was inserted for this message.
        transaction.rollback().await?;
        return Ok(None);
    }
    conversations::touch_outbound(&mut transaction, link.conversation_id).await?;
    transaction.commit().await?;
    Ok(Some(id))
}
