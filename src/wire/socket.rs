//! The socket: TCP, a Unix socket, or TLS over TCP, as one type.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::WireError;
use crate::config::{DatabaseUrl, Host, SslMode};
use crate::postgres::tls;

/// How long a connect to one address may take, and a TLS handshake: long enough for two retransmitted SYNs (after 1 s and
/// 3 s), short enough that the next address is tried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP sends the first keepalive probe after this much idle time …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// … a further one each …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … this many in all: a dead peer is noticed after a minute, as with the default of `wal_sender_timeout`.
const KEEPALIVE_RETRIES: u32 = 3;
/// Encrypted bytes that one read may take from the kernel. rustls alone reads a few KiB at a time, which would undo reading
/// in quanta.
const TLS_READ_BUFFER: usize = 256 * 1024;

/// A connected socket.
pub(super) enum Socket {
    /// TCP without TLS.
    Tcp(TcpStream),
    /// A Unix socket, always without TLS.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Socket {
    /// Connects, with TLS if the URL says so. The socket belongs to the reactor of `runtime`.
    pub(super) async fn connect(url: &DatabaseUrl, runtime: &Handle) -> Result<Self, WireError> {
        match &url.host {
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", url.port));
                let unreachable = |source| WireError::Unreachable {
                    address: path.display().to_string(),
                    source,
                };
                let stream = within(CONNECT_TIMEOUT, "connecting", UnixStream::connect(&path))
                    .await?
                    .and_then(UnixStream::into_std)
                    .map_err(unreachable)?;
                let _entered = runtime.enter();
                UnixStream::from_std(stream).map(Self::Unix).map_err(unreachable)
            }
            Host::Tcp(host) => {
                // TLS settings that cannot work are reported before anything is sent.
                let tls = (url.sslmode != SslMode::Disable)
                    .then(|| {
                        let config = tls::client_config(url.sslmode, url.sslrootcert.as_deref())?;
                        Ok::<_, WireError>((TlsConnector::from(Arc::new(config)), tls::server_name(host)?))
                    })
                    .transpose()?;
                let stream = connect_tcp(host, url.port, runtime).await?;
                let Some((connector, name)) = tls else {
                    return Ok(Self::Tcp(stream));
                };
                let stream = request_tls(stream).await?;
                let handshake = connector.connect(name, BufReader::with_capacity(TLS_READ_BUFFER, stream));
                let stream = within(CONNECT_TIMEOUT, "shaking hands for TLS", Box::pin(handshake))
                    .await?
                    .map_err(WireError::TlsHandshake)?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }

    /// Whether the server is on this machine.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(stream) => is_local(stream),
            Self::Tls(stream) => is_local(stream.get_ref().0.get_ref()),
            Self::Unix(_) => true,
        }
    }

    /// The server's certificate (DER), if the socket uses TLS.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => {
                let (_, session) = stream.get_ref();
                Some(session.peer_certificates()?.first()?.as_ref())
            }
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }
}

/// Tries every address of the host in turn, as libpq does.
async fn connect_tcp(host: &str, port: u16, runtime: &Handle) -> Result<TcpStream, WireError> {
    let unreachable = |source| WireError::Unreachable {
        address: format!("{host}:{port}"),
        source,
    };
    let addresses = within(
        CONNECT_TIMEOUT,
        "resolving the host",
        tokio::net::lookup_host((host, port)),
    )
    .await?
    .map_err(unreachable)?;
    let mut last = None;
    for address in addresses {
        let attempt = within(CONNECT_TIMEOUT, "connecting", TcpStream::connect(address)).await;
        match attempt.and_then(|connected| connected.map_err(unreachable)) {
            Ok(stream) => {
                set_options(&stream).map_err(unreachable)?;
                let stream = stream.into_std().map_err(unreachable)?;
                let _entered = runtime.enter();
                return TcpStream::from_std(stream).map_err(unreachable);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| unreachable(io::Error::other("the name has no address"))))
}

fn is_local(stream: &TcpStream) -> bool {
    matches!((stream.peer_addr(), stream.local_addr()), (Ok(peer), Ok(own)) if peer.ip() == own.ip())
}

/// Small messages are sent at once, and a dead peer is noticed. The size of the receive buffer is left to the kernel, which
/// lets it grow from 64 KiB to megabytes with the stream's rate; setting it would stop that.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Asks for TLS. Exactly one byte is read, so that bytes from before the handshake cannot be taken for encrypted ones
/// (CVE-2021-23222).
async fn request_tls(mut stream: TcpStream) -> Result<TcpStream, WireError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let exchange = async {
        stream.write_all(&request).await?;
        stream.read_u8().await
    };
    match within(CONNECT_TIMEOUT, "asking for TLS", exchange).await? {
        Ok(b'S') => Ok(stream),
        Ok(b'N') => Err(WireError::TlsRefused),
        Ok(other) => Err(WireError::Protocol(format!(
            "the answer to the request for TLS is {:?}",
            char::from(other)
        ))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(WireError::Closed),
        Err(error) => Err(WireError::Io(error)),
    }
}

/// Waits for a future, at most for `limit`.
pub(super) async fn within<F: Future>(limit: Duration, doing: &'static str, future: F) -> Result<F::Output, WireError> {
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| WireError::Timeout { doing, after: limit })
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
