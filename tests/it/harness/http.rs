//! HTTP clients for the tests.

use std::time::Duration;

/// No answer that a test waits for takes as long; without a limit a server that hangs would hang the suite.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A client that asks the servers of this machine directly, whatever proxy the environment names.
pub(crate) fn http_client() -> reqwest::Client {
    http_client_within(ANSWER_LIMIT)
}

/// The same with a limit of its own for each request.
pub(crate) fn http_client_within(limit: Duration) -> reqwest::Client {
    // reqwest is built without a TLS provider and makes no client until the process has one. It is there already if
    // another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(limit).build().unwrap()
}
