//! A TCP proxy whose every byte arrives half a round trip later, as over a long line: each piece is stamped when it comes in
//! and leaves when its time has come, so that any number of pieces are under way and the throughput is not limited.
//!
//! Threads that block, not tasks: a runtime's timers are only as fine as a millisecond.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Listens until the process ends.
pub(crate) struct DelayingProxy {
    port: u16,
}

impl DelayingProxy {
    /// Starts one for a port of this machine. Without a delay there is no proxy, and [`Self::port`] is the port itself.
    pub(crate) fn start(server_port: u16, round_trip: Duration) -> Result<Self> {
        if round_trip.is_zero() {
            return Ok(Self { port: server_port });
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Who can't be served sees a closed connection.
                let _ = connect(client, server, round_trip / 2);
            }
        });
        Ok(Self { port })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// Four threads for a connection: in each direction one that reads and one that writes.
fn connect(client: TcpStream, server: SocketAddr, delay: Duration) -> Result<()> {
    let server = TcpStream::connect(server)?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let (sender, receiver) = channel();
        thread::spawn(move || read(from, delay, &sender));
        thread::spawn(move || write(to, &receiver));
    }
    Ok(())
}

/// A piece, and when it arrives.
type Piece = (Instant, Vec<u8>);

fn read(mut from: TcpStream, delay: Duration, pieces: &Sender<Piece>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if pieces
            .send((Instant::now() + delay, buffer[..length].to_vec()))
            .is_err()
        {
            return;
        }
    }
}

fn write(mut to: TcpStream, pieces: &Receiver<Piece>) {
    while let Ok((at, piece)) = pieces.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // Ends the other direction's reader as well, where the peer is gone.
    let _ = to.shutdown(Shutdown::Write);
}
