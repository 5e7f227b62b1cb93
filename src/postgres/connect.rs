//! Opens a session with every setting pinned ([`session_settings`]) that changes how values are printed or parsed, or that could
//! end the session unexpectedly.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, poll_fn};
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{SessionError, Side};
use super::session_settings::SessionKind;
use super::{session_settings, tls};
use crate::config::{DatabaseUrl, Host, SslMode};

/// How long one connection attempt may take, login and settings included: longer than three lost SYNs (1 + 2 + 4 s).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A peer that does not acknowledge for this long counts as dead. The server uses the same time, so the lock of a daemon
/// whose machine died is free about that soon.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens a reading session on either database: pinned settings, an empty search path but for `pg_catalog`, synchronous
/// commits, time-outs that are ours. The connection's other half runs in a task that ends with it.
///
/// # Errors
/// The server can't be reached within [`CONNECT_TIMEOUT`], refuses, or TLS can't be set up.
pub async fn connect(side: Side, url: &DatabaseUrl, application_name: &str) -> Result<Client, SessionError> {
    open(side, url, application_name, SessionKind::Reading, None)
        .await
        .map(|(client, _)| client)
}

/// As [`connect`]; `notified` is woken by every NOTIFY that the session listens to, and when the connection ends. The
/// handle cuts the connection at once; dropping the client closes it only after the last answer.
///
/// # Errors
/// As [`connect`].
pub async fn open(
    side: Side,
    url: &DatabaseUrl,
    application_name: &str,
    kind: SessionKind,
    notified: Option<Arc<Notify>>,
) -> Result<(Client, AbortHandle), SessionError> {
    let attempt = Box::pin(async {
        let (client, connection) = establish(side, url, application_name, notified).await?;
        // In the same round trip: a `statement_timeout` of a few milliseconds would cancel what pins the settings.
        let at_once = client.batch_execute("SET statement_timeout = 0");
        let pinned = session_settings::statements(kind);
        let (_, pinned) = join(at_once, client.simple_query(&pinned)).await;
        pinned.map_err(|source| SessionError::new(side, "pin the session's settings", source))?;
        Ok((client, connection))
    });
    in_time(side, url, attempt).await
}

/// Cuts a connection some seconds after this was dropped together with its client. A client that is dropped closes its
/// connection only after the last answer, and a server could send that for ever.
#[derive(Debug)]
pub struct CutLater(AbortHandle);

/// How long a connection may take to close.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

impl Drop for CutLater {
    fn drop(&mut self) {
        // Without a runtime, the connection's task has ended already.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let connection = self.0.clone();
            runtime.spawn(async move {
                tokio::time::sleep(CLOSE_GRACE).await;
                connection.abort();
            });
        }
    }
}

/// As [`connect`], with what cuts the connection when both are dropped.
///
/// # Errors
/// As [`connect`].
pub async fn connect_bounded(
    side: Side,
    url: &DatabaseUrl,
    application_name: &str,
) -> Result<(Client, CutLater), SessionError> {
    open_bounded(side, url, application_name, SessionKind::Reading).await
}

/// As [`connect_bounded`], for either kind of session.
///
/// # Errors
/// As [`connect`].
pub async fn open_bounded(
    side: Side,
    url: &DatabaseUrl,
    application_name: &str,
    kind: SessionKind,
) -> Result<(Client, CutLater), SessionError> {
    open(side, url, application_name, kind, None)
        .await
        .map(|(client, connection)| (client, CutLater(connection)))
}

/// Ends an attempt to connect that takes longer than [`CONNECT_TIMEOUT`].
pub(super) async fn in_time<T>(
    side: Side,
    url: &DatabaseUrl,
    attempt: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .unwrap_or_else(|_| {
            Err(SessionError::ConnectTimeout {
                side,
                server: url.to_string(),
                seconds: CONNECT_TIMEOUT.as_secs(),
            })
        })
}

pub(super) async fn establish(
    side: Side,
    url: &DatabaseUrl,
    application_name: &str,
    notified: Option<Arc<Notify>>,
) -> Result<(Client, AbortHandle), SessionError> {
    let mut config = Config::new();
    match &url.host {
        Host::Tcp(name) => config.host(name),
        Host::Unix(folder) => config.host_path(folder),
    };
    config
        .port(url.port)
        .user(&url.user)
        .dbname(&url.database)
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(10))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(4)
        .tcp_user_timeout(PEER_TIMEOUT);
    if let Some(password) = &url.password {
        config.password(password.expose_secret());
    }
    let refused = |source| SessionError::Connect {
        side,
        server: url.to_string(),
        source,
    };
    if url.sslmode == SslMode::Disable {
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let (client, connection) = config.connect(NoTls).await.map_err(refused)?;
        let task = tokio::spawn(drive(connection, notified));
        Ok((client, task.abort_handle()))
    } else {
        config.ssl_mode(tokio_postgres::config::SslMode::Require);
        let tls = tls::client_config(url.sslmode, url.sslrootcert.as_deref()).map_err(|source| SessionError::Tls {
            side,
            server: url.to_string(),
            source,
        })?;
        let (client, connection) = Box::pin(config.connect(MakeRustlsConnect::new(tls)))
            .await
            .map_err(refused)?;
        let task = tokio::spawn(drive(connection, notified));
        Ok((client, task.abort_handle()))
    }
}

/// Asks the server to cancel the statement that a session is running. It ends with an error, unless it has ended before.
///
/// # Errors
/// The server can't be reached, or TLS can't be set up.
pub async fn cancel(client: &Client, url: &DatabaseUrl) -> Result<(), SessionError> {
    let cancelled = |source| SessionError::new(Side::Site, "cancel a statement", source);
    let token = client.cancel_token();
    let asked = async {
        if url.sslmode == SslMode::Disable {
            return token.cancel_query(NoTls).await.map_err(cancelled);
        }
        let tls = tls::client_config(url.sslmode, url.sslrootcert.as_deref()).map_err(|source| SessionError::Tls {
            side: Side::Site,
            server: url.to_string(),
            source,
        })?;
        token.cancel_query(MakeRustlsConnect::new(tls)).await.map_err(cancelled)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(asked))
        .await
        .unwrap_or_else(|_| {
            Err(SessionError::ConnectTimeout {
                side: Side::Site,
                server: url.to_string(),
                seconds: CONNECT_TIMEOUT.as_secs(),
            })
        })
}

/// Runs a connection to its end. The statement that waits for an answer gets the error, so nothing is logged here.
async fn drive<S, T>(mut connection: Connection<S, T>, notified: Option<Arc<Notify>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let (AsyncMessage::Notification(_), Some(notified)) = (message, &notified) {
            notified.notify_one();
        }
    }
    if let Some(notified) = notified {
        notified.notify_one();
    }
}
