//! A TCP proxy in this process that can fail as networks fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The direction of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client of the proxy to the server behind it.
    ToServer,
    /// From the server behind the proxy to its client.
    ToClient,
}

/// Listens on a port of 127.0.0.1 and passes everything on to another. Stops when dropped.
pub(crate) struct Proxy {
    port: u16,
    rules: watch::Sender<Rules>,
    passed: Arc<[AtomicU64; 2]>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    /// Connections that were made under an older number are reset.
    generation: u64,
    refuse: bool,
    /// Nothing passes any more on connections that were made before so many of these calls.
    silenced: u64,
    ways: [Way; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Way {
    hold: bool,
    latency: Duration,
    /// The connection is reset once this many bytes have passed in all.
    cut_at: Option<u64>,
}

impl Proxy {
    /// Starts a proxy for a port of this machine.
    pub(crate) async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port));
        let (rules, _) = watch::channel(Rules::default());
        let passed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let accepting = tokio::spawn(accept(listener, server, rules.clone(), Arc::clone(&passed)));
        Self {
            port,
            rules,
            passed,
            accepting,
        }
    }

    /// Where it listens on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Resets every connection there is now (RST, as when a machine dies and comes back); new ones are taken.
    pub(crate) fn cut(&self) {
        self.rules.send_modify(|rules| rules.generation += 1);
    }

    /// Resets the connection once `bytes` more have passed this way.
    pub(crate) fn cut_after(&self, direction: Direction, bytes: u64) {
        let at = self.passed(direction) + bytes;
        self.rules
            .send_modify(|rules| rules.ways[direction as usize].cut_at = Some(at));
    }

    /// Whether new connections are closed at once.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.rules.send_modify(|rules| rules.refuse = refuse);
    }

    /// Holds bytes back in one direction: nothing arrives, nothing is lost, as behind a full queue.
    pub(crate) fn hold(&self, direction: Direction) {
        self.rules
            .send_modify(|rules| rules.ways[direction as usize].hold = true);
    }

    /// Passes held bytes on.
    pub(crate) fn release(&self, direction: Direction) {
        self.rules
            .send_modify(|rules| rules.ways[direction as usize].hold = false);
    }

    /// Half-open: both ends believe that they are connected, and nothing, not even the end, arrives any more.
    pub(crate) fn half_open(&self) {
        self.hold(Direction::ToServer);
        self.hold(Direction::ToClient);
    }

    /// Nothing passes any more on the connections that there are now, not even their end, as when a host goes away without a
    /// word; new ones are passed on.
    pub(crate) fn silence(&self) {
        self.rules.send_modify(|rules| rules.silenced += 1);
    }

    /// Delays each piece in one direction by this long.
    pub(crate) fn latency(&self, direction: Direction, latency: Duration) {
        self.rules
            .send_modify(|rules| rules.ways[direction as usize].latency = latency);
    }

    /// Bytes that have passed in one direction since the start.
    pub(crate) fn passed(&self, direction: Direction) -> u64 {
        self.passed[direction as usize].load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, rules: watch::Sender<Rules>, passed: Arc<[AtomicU64; 2]>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let (rules, passed) = (rules.clone(), Arc::clone(&passed));
        tokio::spawn(async move {
            let current = *rules.borrow();
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            if current.refuse {
                return;
            }
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // Second handles, to reset both sockets after their halves were given away.
            let Ok(sockets) = SockRef::from(&client)
                .try_clone()
                .and_then(|one| Ok([one, SockRef::from(&server).try_clone()?]))
            else {
                return;
            };
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            let mut newer = rules.subscribe();
            let made = current.silenced;
            let whole = tokio::select! {
                // Each direction ends by itself: an answer may still follow when the request has ended.
                both = async { tokio::try_join!(
                    pass(client_read, server_write, Direction::ToServer, made, &rules, &passed),
                    pass(server_read, client_write, Direction::ToClient, made, &rules, &passed),
                ) } => both.is_ok(),
                _ = newer.wait_for(|rules| rules.generation > current.generation) => false,
            };
            if !whole {
                // A close with a zero linger is a reset: it reaches the peer even if it never reads.
                for socket in sockets {
                    let _ = socket.set_linger(Some(Duration::ZERO));
                }
            }
        });
    }
}

/// The connection broke, or the test cut it.
struct Broken;

/// Passes bytes on until their end, which is passed on as well.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    made: u64,
    rules: &watch::Sender<Rules>,
    passed: &[AtomicU64; 2],
) -> Result<(), Broken> {
    let way = direction as usize;
    let mut watched = rules.subscribe();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut piece).await;
        let latency = rules.borrow().ways[way].latency;
        tokio::time::sleep(latency).await;
        let passes = |rules: &Rules| !rules.ways[way].hold && made >= rules.silenced;
        if watched.wait_for(passes).await.is_err() {
            return Err(Broken);
        }
        let length = match read {
            Ok(0) => return to.shutdown().await.map_err(|_| Broken),
            Ok(length) => length,
            Err(_) => return Err(Broken),
        };
        let before = passed[way].load(Ordering::SeqCst);
        let cut_at = rules.borrow().ways[way].cut_at;
        let allowed = cut_at.map_or(length, |at| {
            usize::try_from(at.saturating_sub(before)).unwrap_or(length).min(length)
        });
        // Counted before it is written: a test that has received the bytes must see them counted.
        passed[way].fetch_add(allowed as u64, Ordering::SeqCst);
        to.write_all(&piece[..allowed]).await.map_err(|_| Broken)?;
        if allowed < length {
            rules.send_modify(|rules| rules.ways[way].cut_at = None);
            return Err(Broken);
        }
    }
}
