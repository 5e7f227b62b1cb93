//! `[http]` and `[admin]`: the two listeners.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::reader::ValueReader;

/// The public listener.
#[derive(Debug, Clone)]
pub struct Http {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// How long a client of the Graph-compatible route waits for its message to be sent before it is cancelled.
    pub send_wait: Duration,
}

/// The admin listener: health and metrics.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

pub(super) fn http(reader: &mut ValueReader<'_>) -> Option<Http> {
    let listen = listen(reader, "http.listen");
    // Meta's largest webhook is 3 MB; the bodies of all requests under way are held in memory.
    let max_body_bytes = reader.integer("http.max_body_bytes", 65_536..=67_108_864);
    let send_wait = reader.milliseconds("http.send_wait_ms", 100..=60_000);
    Some(Http {
        listen: listen?,
        max_body_bytes: max_body_bytes?,
        send_wait: send_wait?,
    })
}

pub(super) fn admin(reader: &mut ValueReader<'_>) -> Option<Admin> {
    Some(Admin {
        listen: listen(reader, "admin.listen")?,
    })
}

/// Notes if both have the same address.
pub(super) fn check_different(reader: &mut ValueReader<'_>, http: &Http, admin: &Admin) {
    if http.listen == admin.listen && http.listen.port() != 0 {
        reader.problem(
            "admin.listen",
            "is the same address as http.listen",
            "give it a port of its own",
        );
    }
}

fn listen(reader: &mut ValueReader<'_>, key: &str) -> Option<SocketAddr> {
    reader.parsed(key, "an address and a port", "127.0.0.1:8080")
}
