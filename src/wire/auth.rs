//! Login: the server's authentication requests, answered as libpq would.
//!
//! Over TLS, SCRAM is bound to the server's certificate if the server offers that (`SCRAM-SHA-256-PLUS`), so that a machine
//! in the middle cannot pass the exchange on. If the server does not offer it, the exchange says that we support it (gs2
//! flag `y`), so that the server notices if its offer was removed on the way.
//!
//! Source: <https://www.postgresql.org/docs/current/sasl-authentication.html>

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};

use super::channel::Channel;
use super::codec::protocol;
use super::error::WireError;
use crate::postgres::tls;

/// Answers the server's requests until it accepts the login.
pub(super) async fn log_in(
    channel: &mut Channel,
    user: &str,
    password: Option<&SecretString>,
) -> Result<(), WireError> {
    let password = || {
        password
            .map(ExposeSecret::expose_secret)
            .map(str::as_bytes)
            .ok_or(WireError::PasswordMissing)
    };
    match channel.receive().await? {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationCleartextPassword => {
            frontend::password_message(password()?, channel.out()).map_err(|error| protocol(&error))?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(user.as_bytes(), password()?, body.salt());
            frontend::password_message(hash.as_bytes(), channel.out()).map_err(|error| protocol(&error))?;
        }
        Message::AuthenticationSasl(body) => scram(channel, &body, password()?).await?,
        Message::AuthenticationGss | Message::AuthenticationGssContinue(_) => {
            return Err(WireError::AuthMethod("GSSAPI"));
        }
        Message::AuthenticationSspi => return Err(WireError::AuthMethod("SSPI")),
        Message::AuthenticationKerberosV5 => return Err(WireError::AuthMethod("Kerberos V5")),
        Message::AuthenticationScmCredential => return Err(WireError::AuthMethod("SCM credentials")),
        _ => return Err(unexpected()),
    }
    channel.flush().await?;
    match channel.receive().await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(unexpected()),
    }
}

/// The SCRAM exchange, up to and including the server's proof that it knows the password.
async fn scram(channel: &mut Channel, offer: &AuthenticationSaslBody, password: &[u8]) -> Result<(), WireError> {
    let (mut plain, mut plus) = (false, false);
    let mut mechanisms = offer.mechanisms();
    while let Some(mechanism) = mechanisms.next().map_err(|error| protocol(&error))? {
        match mechanism {
            SCRAM_SHA_256 => plain = true,
            SCRAM_SHA_256_PLUS => plus = true,
            _ => {}
        }
    }
    let on_tls = channel.peer_certificate().is_some();
    let end_point = channel.peer_certificate().and_then(tls::tls_server_end_point);
    let (mechanism, binding) = match end_point {
        Some(hash) if plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        // Without TLS there is nothing to bind to, so the offer was not made by the server.
        _ if plus && !on_tls => {
            return Err(WireError::Protocol(
                "SCRAM-SHA-256-PLUS was offered without TLS".to_owned(),
            ));
        }
        Some(_) if plain => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None if plain => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        _ => return Err(WireError::AuthMethod("an unknown SASL mechanism")),
    };
    let mut exchange = ScramSha256::new(password, binding);
    frontend::sasl_initial_response(mechanism, exchange.message(), channel.out()).map_err(|error| protocol(&error))?;
    channel.flush().await?;

    let Message::AuthenticationSaslContinue(challenge) = channel.receive().await? else {
        return Err(unexpected());
    };
    exchange.update(challenge.data()).map_err(WireError::Scram)?;
    frontend::sasl_response(exchange.message(), channel.out()).map_err(|error| protocol(&error))?;
    channel.flush().await?;

    // A server that skips its proof does not know the password: an AuthenticationOk before it is refused.
    let Message::AuthenticationSaslFinal(proof) = channel.receive().await? else {
        return Err(unexpected());
    };
    exchange.finish(proof.data()).map_err(WireError::Scram)
}

fn unexpected() -> WireError {
    WireError::Protocol("an unexpected message while logging in".to_owned())
}
