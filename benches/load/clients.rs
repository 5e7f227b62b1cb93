//! Clients with a keep-alive connection each: one request at a time, as fast as the answers come.
//!
//! Written by hand on sockets, because the clients share the machine with what they measure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How a load went.
pub(crate) struct Load {
    /// Seconds from each request to its answer 200 or 202; sorted.
    latencies: Vec<f64>,
    /// Other answers.
    pub(crate) refused: u64,
    took: Duration,
}

impl Load {
    /// Answers 200 or 202.
    pub(crate) fn answered(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// The same in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answered() / self.took.as_secs_f64()
    }

    /// The latency that this share of the answers did not exceed.
    pub(crate) fn latency_ms(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share between 0 and 1 of a length"
        )]
        let at = (self.answered() * share) as usize;
        self.latencies.get(at).map_or(f64::NAN, |seconds| seconds * 1e3)
    }
}

/// A POST of this body.
pub(crate) fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Lets this many clients send requests for so long. `request` makes the request with a number that no other has.
pub(crate) async fn load<R>(server: SocketAddr, clients: usize, length: Duration, request: R) -> Result<Load>
where
    R: Fn(u64) -> Vec<u8> + Send + Sync + 'static,
{
    let (request, next) = (Arc::new(request), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let (request, next) = (Arc::clone(&request), Arc::clone(&next));
        running.spawn(async move {
            let (mut latencies, mut refused) = (Vec::new(), 0);
            let mut client = Client::connect(server).await?;
            while began.elapsed() < length {
                let request = request(next.fetch_add(1, Ordering::Relaxed));
                let sent = Instant::now();
                match client.send(&request).await? {
                    200 | 202 => latencies.push(sent.elapsed().as_secs_f64()),
                    _ => refused += 1,
                }
            }
            Ok::<_, anyhow::Error>((latencies, refused))
        });
    }
    let mut load = Load {
        latencies: Vec::new(),
        refused: 0,
        took: Duration::ZERO,
    };
    while let Some(client) = running.join_next().await {
        let (latencies, refused) = client??;
        load.latencies.extend(latencies);
        load.refused += refused;
    }
    load.took = began.elapsed();
    load.latencies.sort_by(f64::total_cmp);
    Ok(load)
}

/// A keep-alive connection.
pub(crate) struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(server: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(server).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Sends a request and returns the status of its answer, whose length the server must say.
    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<u16> {
        self.socket.write_all(request).await?;
        self.buffer.clear();
        loop {
            let read = self.socket.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the server closed the connection");
            let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                continue;
            };
            let head = std::str::from_utf8(&self.buffer[..end])?.to_ascii_lowercase();
            let length: usize = head
                .split("\r\n")
                .find_map(|line| line.strip_prefix("content-length:"))
                .context("an answer without a length")?
                .trim()
                .parse()?;
            if self.buffer.len() >= end + 4 + length {
                return Ok(head.get(9..12).context("no status")?.parse()?);
            }
        }
    }
}
