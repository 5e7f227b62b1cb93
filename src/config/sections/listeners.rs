//! `[http]` and `[admin]`: the two listeners.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::reader::ValueReader;

/// The public listener.
#[derive(Debug, Clone)]
pub struct Http {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Most connections at a time.
    pub max_connections: usize,
    /// Most connections from one address at a time.
    pub max_connections_per_address: usize,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest upload of a medium, in bytes.
    pub max_media_bytes: u64,
    /// Where clients reach this listener; `None`: as their requests say.
    pub public_url: Option<url::Url>,
    /// How long a client of the Graph-compatible route waits for its message to be sent before it is cancelled.
    pub send_wait: Duration,
    /// Which web pages may call the API from a browser.
    pub cors_origins: CorsOrigins,
}

/// The web pages whose scripts may call the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// All of them.
    Any,
    /// These, as browsers name them in `Origin`; maybe none.
    Named(Vec<String>),
}

/// The admin listener: health and metrics.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

pub(super) fn http(reader: &mut ValueReader<'_>) -> Option<Http> {
    let listen = listen(reader, "http.listen");
    // Fewer could not be shared among the families of routes.
    let max_connections = reader.integer("http.max_connections", 64..=65_536);
    let max_connections_per_address = reader.integer("http.max_connections_per_address", 1..=65_536);
    // Meta's largest webhook is 3 MB; the bodies of all requests under way are held in memory.
    let max_body_bytes = reader.integer("http.max_body_bytes", 65_536..=67_108_864);
    // Meta's largest medium has 100 MB; its form is a little longer.
    let max_media_bytes = reader.integer("http.max_media_bytes", 65_536..=1_073_741_824);
    let public_url = public_url(reader);
    let send_wait = reader.milliseconds("http.send_wait_ms", 100..=60_000);
    let cors_origins = cors_origins(reader);
    Some(Http {
        listen: listen?,
        max_connections: max_connections?,
        max_connections_per_address: max_connections_per_address?,
        max_body_bytes: max_body_bytes?,
        max_media_bytes: max_media_bytes?,
        public_url: public_url?,
        send_wait: send_wait?,
        cors_origins: cors_origins?,
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

fn public_url(reader: &mut ValueReader<'_>) -> Option<Option<url::Url>> {
    let key = "http.public_url";
    if reader.value(key).is_none() {
        return Some(None);
    }
    let text = reader.text(key)?;
    match url::Url::parse(text.trim_end_matches('/')) {
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty() =>
        {
            Some(Some(url))
        }
        _ => reader.wrong(
            key,
            "is not a base URL with https:// (or http://)",
            "write it as in https://whatsapp.example.com",
        ),
    }
}

fn cors_origins(reader: &mut ValueReader<'_>) -> Option<CorsOrigins> {
    let key = "http.cors_origins";
    let mut origins = Vec::new();
    for value in reader.list(key)? {
        let text = value.as_str().unwrap_or_default();
        if text == "*" {
            return Some(CorsOrigins::Any);
        }
        // What a browser writes: no path, no default port, lower case.
        let origin = url::Url::parse(text).map(|url| url.origin().ascii_serialization());
        if origin.as_deref().is_ok_and(|origin| origin != "null") && !text.contains('*') {
            origins.extend(origin);
        } else {
            return reader.wrong(
                key,
                format!("{text:?} is not the origin of a web page"),
                "write it as in [\"https://crm.example.com\"]",
            );
        }
    }
    Some(CorsOrigins::Named(origins))
}

fn listen(reader: &mut ValueReader<'_>, key: &str) -> Option<SocketAddr> {
    reader.parsed(key, "an address and a port", "127.0.0.1:8080")
}
