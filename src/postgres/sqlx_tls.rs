//! TLS for sqlx where the URL names authorities (`sslrootcert`), by the one meaning of [`super::tls`].
//!
//! sqlx verifies certificates itself, and has no way to be told how. It trusts the system's authorities beside the file's: with
//! `verify-ca`, a certificate of any public authority for any name would do. So it is given no TLS to do. It connects to a Unix
//! socket of this process, behind which the connection to the server is opened, TLS and all, and bytes are passed on. That costs
//! each message a copy within the process.
//!
//! The socket has a name in Linux's abstract namespace that is chosen by chance, is in no folder where somebody could put
//! another one, and accepts connections of this process alone. On other systems sqlx does TLS itself.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::tls;
use crate::config::{DatabaseUrl, Host, SslMode};

/// SSLRequest: its length, and the code that stands in the place of a protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How long connecting to the server may take, TLS included. Less than sqlx's caller waits, who is then told why.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Of the connection to the server: a host that has gone silent is noticed within a minute or two.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How sqlx reaches a database.
#[derive(Debug)]
pub struct SqlxAccess {
    options: PgConnectOptions,
    bridge: Option<Bridge>,
}

/// The socket, until the first connection is opened; then the task that accepts connections.
#[derive(Debug)]
struct Bridge {
    listener: Mutex<Option<StdListener>>,
    server: Arc<Server>,
    stop: CancellationToken,
    _stopped: DropGuard,
}

#[derive(Debug)]
struct Server {
    url: DatabaseUrl,
    /// Why the last connection could not be opened, until somebody has asked.
    failure: Mutex<Option<io::Error>>,
}

impl SqlxAccess {
    /// `options`: as for a server that sqlx reaches by itself.
    pub(super) fn new(url: &DatabaseUrl, options: PgConnectOptions) -> Self {
        let is_verified = url.sslmode != SslMode::Disable && url.sslrootcert.is_some();
        if !cfg!(target_os = "linux") || !is_verified || !matches!(url.host, Host::Tcp(_)) {
            return Self { options, bridge: None };
        }
        let name = format!("twinlog-{:032x}", rand::rng().random::<u128>());
        let options = options
            .socket(PathBuf::from(format!("\0{name}")))
            .ssl_mode(PgSslMode::Disable);
        let server = Arc::new(Server {
            url: url.clone(),
            failure: Mutex::new(None),
        });
        let listener = match listen(&format!("{name}/.s.PGSQL.{}", url.port)) {
            Ok(listener) => Some(listener),
            // Then nothing is connected, and this is said.
            Err(error) => {
                server.failed(error);
                None
            }
        };
        let stop = CancellationToken::new();
        let bridge = Bridge {
            listener: Mutex::new(listener),
            server,
            _stopped: stop.clone().drop_guard(),
            stop,
        };
        Self {
            options,
            bridge: Some(bridge),
        }
    }

    /// Without log lines for single statements.
    #[must_use]
    pub fn without_statement_logging(mut self) -> Self {
        self.options = self.options.disable_statement_logging();
        self
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The network's, the server's or that of TLS.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.options().connect().await.map_err(|error| self.explained(error))
    }

    /// The options to connect with. To be called within the runtime.
    #[must_use]
    pub fn options(&self) -> &PgConnectOptions {
        if let Some(bridge) = &self.bridge {
            bridge.start();
        }
        &self.options
    }

    /// The error of a connection that could not be opened, as the server or TLS gave it.
    fn explained(&self, error: sqlx::Error) -> sqlx::Error {
        let failure = self.bridge.as_ref().and_then(|bridge| bridge.server.take_failure());
        match failure {
            Some(failure) if failure.kind() == io::ErrorKind::InvalidData => sqlx::Error::Tls(Box::new(failure)),
            Some(failure) => sqlx::Error::Io(failure),
            None => error,
        }
    }
}

impl Bridge {
    /// Accepts connections from now on.
    fn start(&self) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = listener else { return };
        match UnixListener::from_std(listener) {
            Ok(listener) => {
                let (server, stop) = (Arc::clone(&self.server), self.stop.clone());
                tokio::spawn(async move {
                    let _ = stop.run_until_cancelled(server.accept(listener)).await;
                });
            }
            Err(error) => self.server.failed(error),
        }
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if is_of_this_process(&stream) => {
                    connections.spawn(Arc::clone(&self).carry(stream));
                }
                Ok(_) => {}
                // No file descriptor is left, for example.
                Err(error) => {
                    self.failed(error);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Connects to the server, and passes bytes on until one side ends. Without a connection, the stream is closed.
    async fn carry(self: Arc<Self>, mut stream: UnixStream) {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(self.connect()))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok(server) => {
                let (mut from_server, mut to_server) = split(server);
                let (mut from_client, mut to_client) = stream.split();
                // Both end with the first that does: who has gone waits for no answer, and a server that has gone has none.
                tokio::select! {
                    _ = copy(&mut from_client, &mut to_server) => {}
                    _ = copy(&mut from_server, &mut to_client) => {}
                }
            }
            Err(error) => self.failed(error),
        }
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let Host::Tcp(host) = &self.url.host else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let invalid = |error: tls::TlsError| io::Error::new(io::ErrorKind::InvalidData, error);
        let config = tls::client_config(self.url.sslmode, self.url.sslrootcert.as_deref()).map_err(invalid)?;
        let name: ServerName<'static> = tls::server_name(host).map_err(invalid)?;
        let mut stream = TcpStream::connect((host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        stream.write_all(&SSL_REQUEST).await?;
        // Exactly one byte, so that bytes from before the handshake are not taken for encrypted ones (CVE-2021-23222).
        if stream.read_u8().await? != b'S' {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "server does not support TLS",
            ));
        }
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn failed(&self, error: io::Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn is_of_this_process(stream: &UnixStream) -> bool {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    pid.is_some_and(|pid| u32::try_from(pid) == Ok(std::process::id()))
}

#[cfg(target_os = "linux")]
fn listen(name: &str) -> io::Result<StdListener> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let listener = StdListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(not(target_os = "linux"))]
fn listen(_: &str) -> io::Result<StdListener> {
    Err(io::ErrorKind::Unsupported.into())
}
