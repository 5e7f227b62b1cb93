//! What the handle and the control routes both do.

use std::time::Duration;

use rand::Rng;
use url::Url;

use super::fault::ActiveFault;
use super::ids::wamid;
use super::webhooks::{History, IdentityChange, Inbound};
use super::world::{Number, World};

/// The simulator has no such number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the simulator has no such phone_number_id")]
pub struct UnknownNumber;

/// The callback did not pass Meta's handshake.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No callback is set.
    #[error("no callback is set")]
    NoCallback,
    /// It could not be reached.
    #[error("the callback could not be reached")]
    Unreachable(#[source] reqwest::Error),
    /// It did not answer with the challenge.
    #[error("the callback answered {status} and not the challenge")]
    Refused {
        /// The HTTP status.
        status: u16,
    },
}

/// Switches a fault on; it replaces one of the same kind for the same recipients.
pub(super) fn set_fault(world: &World, number: &str, active: ActiveFault) -> Result<(), UnknownNumber> {
    let kind = std::mem::discriminant(&active.fault);
    with_number(world, number, |number| {
        number
            .faults
            .retain(|other| std::mem::discriminant(&other.fault) != kind || other.to != active.to);
        if active.remaining != Some(0) {
            number.faults.push(active);
        }
    })
}

pub(super) fn clear_faults(world: &World, number: &str) -> Result<(), UnknownNumber> {
    with_number(world, number, |number| number.faults.clear())
}

pub(super) fn expire_token(world: &World, number: &str) -> Result<(), UnknownNumber> {
    with_number(world, number, |number| number.expired = true)
}

pub(super) fn set_token(world: &World, number: &str, token: &str) -> Result<(), UnknownNumber> {
    with_number(world, number, |number| {
        token.clone_into(&mut number.account.access_token);
        number.expired = false;
    })
}

fn with_number(world: &World, number: &str, act: impl FnOnce(&mut Number)) -> Result<(), UnknownNumber> {
    world.numbers().get_mut(number).map(act).ok_or(UnknownNumber)
}

/// Reports a change about a number; `members` is its value without the metadata.
pub(super) async fn emit(world: &World, phone_number_id: &str, field: &str, members: serde_json::Value) {
    world.expect(1);
    world.enqueue(phone_number_id, field, members, None).await;
}

/// A user writes; returns the message's wamid.
pub(super) async fn inbound(world: &World, inbound: &Inbound) -> String {
    let given = inbound.message.get("id").and_then(serde_json::Value::as_str);
    let id = given.map_or_else(|| wamid(inbound.from.as_deref().unwrap_or_default()), ToOwned::to_owned);
    emit(world, &inbound.phone_number_id, "messages", inbound.value(&id)).await;
    world.ledger().receive(&id);
    if let Some(number) = &inbound.from {
        world.meet(number);
    }
    id
}

/// A user's ids change; returns the notice's wamid.
pub(super) async fn change_identity(world: &World, phone_number_id: &str, change: &IdentityChange) -> String {
    let id = wamid(change.from.as_deref().unwrap_or_default());
    emit(world, phone_number_id, "messages", change.value(&id)).await;
    id
}

/// What was said with a user before the number joined the API.
pub(super) async fn history(world: &World, phone_number_id: &str, history: &History) -> Result<(), UnknownNumber> {
    let business = world
        .numbers()
        .get(phone_number_id)
        .map(|number| number.account.display_phone_number.clone())
        .ok_or(UnknownNumber)?;
    for value in history.values(&business, || wamid(&history.user)) {
        emit(world, phone_number_id, "history", value).await;
    }
    Ok(())
}

/// Verifies the callback as Meta does: it must answer with the challenge.
pub(super) async fn handshake(world: &World) -> Result<(), HandshakeError> {
    let mut url: Url = world.callback().ok_or(HandshakeError::NoCallback)?;
    let challenge = rand::rng().random_range(1_000_000_000_u64..10_000_000_000).to_string();
    url.query_pairs_mut()
        .append_pair("hub.mode", "subscribe")
        .append_pair("hub.challenge", &challenge)
        .append_pair("hub.verify_token", &world.settings.verify_token);
    let answer = world
        .client
        .get(url)
        .timeout(Duration::from_secs(10))
        .send()
        .await
        .map_err(HandshakeError::Unreachable)?;
    let status = answer.status().as_u16();
    let body = answer.text().await.map_err(HandshakeError::Unreachable)?;
    if status == 200 && body == challenge {
        Ok(())
    } else {
        Err(HandshakeError::Refused { status })
    }
}
