//! Carries the connections of sqlx: it connects to a socket of this process, behind which the connection to the server is opened,
//! and bytes are passed on. That costs each message a copy within the process. What sqlx lacks is done here:
//!
//! - **TLS** by the one meaning of [`super::tls`]. sqlx trusts the system's authorities beside those of `sslrootcert`: with
//!   `verify-ca`, a certificate of any public authority for any name would do.
//! - **A bound on memory** ([`super::answer_bound`]), whatever the server sends.
//! - TCP keepalive.
//!
//! The socket has a name in Linux's abstract namespace that is chosen by chance, is in no folder where somebody could put
//! another one, and accepts connections of this process alone. On other systems sqlx connects by itself.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer_bound::{AnswerBound, AnswerBytes};
use super::tls;
use crate::config::{DatabaseUrl, Host, SslMode};

/// SSLRequest: its length, and the code that stands in the place of a protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How long connecting to the server may take, TLS included. Less than sqlx's caller waits, who is then told why.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Of the connection to the server: a host that has gone silent is noticed within a minute or two.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Most bytes that are read at once. Long answers are rare.
const PIECE: usize = 16 * 1024;

/// How sqlx reaches a database.
#[derive(Debug)]
pub struct SqlxAccess {
    options: PgConnectOptions,
    relay: Option<Relay>,
}

/// The socket, until the first connection is opened; then the task that accepts connections.
#[derive(Debug)]
struct Relay {
    listener: Mutex<Option<StdListener>>,
    server: Arc<Server>,
    stop: CancellationToken,
    _stopped: DropGuard,
}

#[derive(Debug)]
struct Server {
    url: DatabaseUrl,
    /// Why the last connection could not be opened.
    failure: Mutex<Option<io::Error>>,
    answers: AnswerBytes,
}

/// A connection to the server.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl SqlxAccess {
    /// `options`: as for a server that sqlx reaches by itself.
    pub(super) fn new(url: &DatabaseUrl, options: PgConnectOptions) -> Self {
        if !cfg!(target_os = "linux") {
            return Self { options, relay: None };
        }
        let name = format!("twinlog-{:032x}", rand::rng().random::<u128>());
        let options = options
            .socket(PathBuf::from(format!("\0{name}")))
            .ssl_mode(PgSslMode::Disable);
        let server = Arc::new(Server {
            url: url.clone(),
            failure: Mutex::new(None),
            answers: AnswerBytes::default(),
        });
        let listener = match listen(&format!("{name}/{}", socket_file(url.port))) {
            Ok(listener) => Some(listener),
            // Then nothing is connected, and this is said.
            Err(error) => {
                server.connected(Some(error));
                None
            }
        };
        let stop = CancellationToken::new();
        let relay = Relay {
            listener: Mutex::new(listener),
            server,
            _stopped: stop.clone().drop_guard(),
            stop,
        };
        Self {
            options,
            relay: Some(relay),
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
        if let Some(relay) = &self.relay {
            relay.start();
        }
        &self.options
    }

    /// The error of a connection that could not be opened, as the network or TLS gave it: sqlx only sees its end.
    #[must_use]
    pub fn explained(&self, error: sqlx::Error) -> sqlx::Error {
        let failure = match &error {
            sqlx::Error::Io(_) => self.relay.as_ref().and_then(|relay| relay.server.failure()),
            _ => None,
        };
        match failure {
            Some(failure) if failure.kind() == io::ErrorKind::InvalidData => sqlx::Error::Tls(Box::new(failure)),
            Some(failure) => sqlx::Error::Io(failure),
            None => error,
        }
    }
}

impl Relay {
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
            Err(error) => self.server.connected(Some(error)),
        }
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                // Ends with the connection, and not with this task.
                Ok((stream, _)) if is_of_this_process(&stream) => {
                    tokio::spawn(Arc::clone(&self).carry(stream));
                }
                Ok(_) => {}
                // No file descriptor is left, for example.
                Err(error) => {
                    self.connected(Some(error));
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
                self.connected(None);
                let (mut from_server, mut to_server) = split(server);
                let (mut from_client, mut to_client) = stream.split();
                // The login's answer has not been asked for by a request.
                let asked = Arc::new(AtomicBool::new(true));
                let bound = AnswerBound::new(self.answers.clone(), Arc::clone(&asked));
                // Both end with the first that does: who has gone waits for no answer, and a server that has gone has none.
                tokio::select! {
                    _ = requests(&mut from_client, &mut to_server, &asked) => {}
                    _ = answers(&mut from_server, &mut to_client, bound) => {}
                }
            }
            Err(error) => self.connected(Some(error)),
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let host = match &self.url.host {
            Host::Tcp(host) => host,
            Host::Unix(folder) => {
                let stream = UnixStream::connect(folder.join(socket_file(self.url.port))).await?;
                return Ok(Box::new(stream));
            }
        };
        let mut stream = TcpStream::connect((host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        if self.url.sslmode == SslMode::Disable {
            return Ok(Box::new(stream));
        }
        let invalid = |error: tls::TlsError| io::Error::new(io::ErrorKind::InvalidData, error);
        let config = tls::client_config(self.url.sslmode, self.url.sslrootcert.as_deref()).map_err(invalid)?;
        let name: ServerName<'static> = tls::server_name(host).map_err(invalid)?;
        stream.write_all(&SSL_REQUEST).await?;
        // Exactly one byte, so that bytes from before the handshake are not taken for encrypted ones (CVE-2021-23222).
        if stream.read_u8().await? != b'S' {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "server does not support TLS",
            ));
        }
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Box::new(stream))
    }

    /// A connection was opened, or not.
    fn connected(&self, failure: Option<io::Error>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// Why the last connection could not be opened. Several callers may ask.
    fn failure(&self) -> Option<io::Error> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(same)
    }
}

/// The same error once more, with its cause where that tells the remedy.
fn same(error: &io::Error) -> io::Error {
    if let Some(code) = error.raw_os_error() {
        return io::Error::from_raw_os_error(code);
    }
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(refused) => io::Error::new(error.kind(), refused.clone()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Passes on what sqlx sends.
async fn requests(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
    asked: &AtomicBool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = client.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        asked.store(true, Ordering::Relaxed);
        server.write_all(piece.get(..count).unwrap_or_default()).await?;
        // Of TLS.
        server.flush().await?;
    }
}

/// Passes on what the server sends, within the bound; beyond it, an error in its name.
async fn answers(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    mut bound: AnswerBound,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = server.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        let read = piece.get(..count).unwrap_or_default();
        if let Err(refused) = bound.look(read) {
            if let Some(before) = refused.before {
                client.write_all(read.get(..before).unwrap_or_default()).await?;
                client.write_all(&refused.why.error_response()).await?;
            }
            return Ok(());
        }
        client.write_all(read).await?;
    }
}

/// The name of a server's socket in its folder.
fn socket_file(port: u16) -> String {
    format!(".s.PGSQL.{port}")
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
