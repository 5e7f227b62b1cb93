//! Whether a client may name a message (quote it, react to it, mark it as read) or send a medium. It may unless the message or
//! the medium is known to be one of other numbers only. One that is not known passes: it may be older than this server, or
//! just be coming in, and Meta decides.

use super::state::State;
use crate::config::ApiToken;
use crate::provider::Wamid;
use crate::provider::cloud::{GraphError, references};
use crate::site_db::{SiteError, media, messages};

/// Why a message is not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuoteError {
    #[error("the message or medium that is named is not one of the client's numbers")]
    NotTheirs,
    #[error(transparent)]
    Unreadable(#[from] references::Unreadable),
    #[error("look for the message that is named")]
    Site(#[source] SiteError),
}

/// Checks the messages and the media that a message names; `body` is its request.
pub(super) async fn may_send(state: &State, client: &ApiToken, body: &[u8]) -> Result<(), QuoteError> {
    if may_use_all(state, client) {
        return Ok(());
    }
    let named = references::of_message(body)?;
    may_name(state, client, &named.messages).await?;
    for id in &named.media {
        let owner = media::owner(&state.pool, id).await.map_err(QuoteError::Site)?;
        if owner.is_some_and(|number| !client.may_use(number.as_str())) {
            return Err(QuoteError::NotTheirs);
        }
    }
    Ok(())
}

fn may_use_all(state: &State, client: &ApiToken) -> bool {
    let accounts = &state.settings.accounts;
    accounts
        .iter()
        .all(|known| client.may_use(known.account.phone_number_id().as_str()))
}

/// Checks messages that a request names.
pub(super) async fn may_name(
    state: &State,
    client: &ApiToken,
    named: impl IntoIterator<Item = &Wamid>,
) -> Result<(), QuoteError> {
    if may_use_all(state, client) {
        return Ok(());
    }
    for wamid in named {
        let numbers = messages::numbers_of(&state.pool, wamid)
            .await
            .map_err(QuoteError::Site)?;
        if !numbers.is_empty() && !numbers.iter().any(|number| client.may_use(number.as_str())) {
            return Err(QuoteError::NotTheirs);
        }
    }
    Ok(())
}

/// The answer for a message of which it can't be read what it names.
pub(super) fn unreadable() -> GraphError {
    GraphError::new(100, "Invalid parameter").with_details(
        "it can't be read which messages and media the message names, and this client may name those of its own numbers only: \
         write objects as objects, each member once, and no text that was cut inside a character as a name",
    )
}

/// Meta's answer for what it does not know.
pub(super) fn unknown() -> GraphError {
    GraphError::new(100, "Invalid parameter").with_details("a message or a medium that is named does not exist")
}
