//! Asks the addresses: our own listeners, the public URL as Meta would, the pages of the front end, the keys of users' tokens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::redirect::Policy;
use secrecy::ExposeSecret;
use url::Url;
use uuid::Uuid;

use super::address::{self, Answered};
use super::examination::Examination;
use super::finding::{Code, Finding};
use crate::config::{Config, CorsOrigins, JwtKeySource};
use crate::provider::cloud::{probe, signature};

/// Meta waits about as long for a handshake.
const TIMEOUT: Duration = Duration::from_secs(8);
/// The beginning of an answer that is read.
const MAX_BODY: usize = 64 * 1024;

/// Examines the addresses that the configuration names.
pub(super) async fn examine(config: &Config) -> Examination {
    let mut own = Examination::default();
    // Meta follows no redirects either. `main` has installed the TLS provider.
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(Policy::none())
        .user_agent(concat!("twinlog/", env!("CARGO_PKG_VERSION")))
        .build();
    let Ok(client) = client else {
        let what = "could not be checked, because the system has no trusted certificates";
        own.add([Finding::new(Code::CheckFailed, "addresses", what).fix("install ca-certificates")]);
        return own;
    };
    if !config.whatsapp.accounts.is_empty() {
        Box::pin(of_server(config, &client, &mut own)).await;
    }
    if let CorsOrigins::Named(origins) = &config.http.cors_origins {
        for origin in origins {
            let answered = get(&client, origin).await;
            own.done(format!("the front end at {origin}"));
            own.add(address::of_front_end(origin, &answered));
        }
    }
    if let Some(JwtKeySource::Url(url)) = config.jwt.as_ref().and_then(|jwt| jwt.keys.as_ref()) {
        let answered = get(&client, url.as_str()).await;
        own.done("the keys of users' tokens");
        own.add(address::of_jwt_keys(url, &answered));
    }
    own
}

/// The server: its own listeners, and the way of Meta's webhooks.
async fn of_server(config: &Config, client: &reqwest::Client, own: &mut Examination) {
    if config.http.listen.port() != 0 && config.admin.listen.port() != 0 {
        let (webhook, alive) = (at(config.http.listen, "/webhook"), at(config.admin.listen, "/healthz"));
        let (http, admin) = tokio::join!(get(client, &webhook), get(client, &alive));
        own.done("the server's own addresses");
        own.add(address::of_listeners(config, &http, &admin));
    }
    let Some(webhook) = config.http.public_url.as_ref().and_then(callback) else {
        return;
    };
    if let Some(token) = &config.whatsapp.verify_token {
        let challenge = Uuid::new_v4().simple().to_string();
        let mut url = webhook.clone();
        url.query_pairs_mut()
            .append_pair("hub.mode", "subscribe")
            .append_pair("hub.verify_token", token.expose_secret())
            .append_pair("hub.challenge", &challenge);
        let answered = get(client, url.as_str()).await;
        own.done("a handshake through the public URL");
        own.add(address::of_handshake(&webhook, &challenge, &answered));
        // Said once: the probe would only meet the same.
        if !matches!(answered, Answered::Http(200 | 403, _)) {
            return;
        }
    }
    if let Some(secret) = config.whatsapp.app_secrets.first() {
        let request = client
            .post(webhook.clone())
            .header("content-type", "application/json")
            .header(signature::HEADER, signature::sign(secret, probe::BODY.as_bytes()))
            .body(probe::BODY);
        let answered = answer(request).await;
        own.done("a signed probe through the public URL");
        own.add(address::of_probe(&webhook, &answered));
    }
}

/// Where Meta's webhooks should go.
pub(super) fn callback(public_url: &Url) -> Option<Url> {
    format!("{}/webhook", public_url.as_str().trim_end_matches('/'))
        .parse()
        .ok()
}

/// A path at a listener of this machine.
fn at(listen: SocketAddr, path: &str) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}{path}", SocketAddr::new(ip, listen.port()))
}

async fn get(client: &reqwest::Client, url: &str) -> Answered {
    answer(client.get(url)).await
}

async fn answer(request: reqwest::RequestBuilder) -> Answered {
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Answered::Nothing(why(&error)),
    };
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY {
            break;
        }
    }
    Answered::Http(status, String::from_utf8_lossy(&body).into_owned())
}

/// Why there was no answer, without the URL, which may have the verify token.
fn why(error: &reqwest::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut last = None;
    while let Some(error) = cause {
        last = Some(error.to_string());
        cause = error.source();
    }
    match last {
        _ if error.is_timeout() => format!("no answer within {} s", TIMEOUT.as_secs()),
        Some(last) => format!("it can't be reached: {last}"),
        None => "it can't be reached".to_owned(),
    }
}
