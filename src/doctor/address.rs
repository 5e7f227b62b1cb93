//! What is found about addresses: the server's own, the public URL that Meta calls, the web pages of the front end.

use std::net::IpAddr;

use url::{Host, Url};

use super::finding::{Code, Finding};
use crate::config::{Config, CorsOrigins};
use crate::provider::cloud::probe;

/// What answered to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    /// Something, with this status and the beginning of its body.
    Http(u16, String),
    /// Nothing, for this reason.
    Nothing(String),
}

/// What the configuration says about addresses, without asking any.
pub(super) fn of_config(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    if !config.admin.listen.ip().is_loopback() {
        let what = format!(
            "admin.listen is {}, which other machines can reach",
            config.admin.listen
        );
        found.push(
            Finding::new(Code::AdminPublic, "admin.listen", what)
                .fix("admin.listen = \"127.0.0.1:9187\"; or keep it behind a firewall"),
        );
    }
    if config.whatsapp.verify_token.is_none() && !config.whatsapp.accounts.is_empty() {
        found.push(
            Finding::new(Code::VerifyTokenUnset, "whatsapp.verify_token", "it is not set")
                .fix("whatsapp.verify_token = { file = \"…\" }: any text, the same as in Meta's dashboard"),
        );
    }
    match &config.http.public_url {
        Some(url) if url.scheme() != "https" && !is_here(url) => found.push(
            Finding::new(Code::PublicUrlPlain, "http.public_url", format!("it is {url}"))
                .fix("put a proxy that terminates TLS in front of http.listen, and write https://"),
        ),
        None if !config.whatsapp.accounts.is_empty() => found.push(
            Finding::new(Code::PublicUrlUnset, "http.public_url", "it is not set")
                .fix("http.public_url = \"https://whatsapp.example.com\", or: twinlog doctor --public-url URL"),
        ),
        Some(_) | None => {}
    }
    match &config.http.cors_origins {
        CorsOrigins::Any => found.push(
            Finding::new(Code::FrontEndAny, "http.cors_origins", "it is \"*\"")
                .fix("http.cors_origins = [\"https://crm.example.com\"]"),
        ),
        CorsOrigins::Named(origins) => {
            for origin in origins {
                if let Some(url) = origin
                    .parse::<Url>()
                    .ok()
                    .filter(|url| url.scheme() == "http" && !is_here(url))
                {
                    let what = format!("{} is not https", url.origin().ascii_serialization());
                    found.push(
                        Finding::new(Code::FrontEndPlain, "http.cors_origins", what)
                            .fix("serve the front end over https"),
                    );
                }
            }
        }
    }
    found
}

/// Whether a URL leads to this machine.
fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

/// Meta's handshake, tried through the public URL with this challenge.
pub(super) fn of_handshake(url: &Url, challenge: &str, answered: &Answered) -> Option<Finding> {
    match answered {
        Answered::Http(200, body) if body.trim() == challenge => None,
        Answered::Http(403, _) => Some(
            Finding::new(
                Code::VerifyTokenDiffers,
                url,
                "the handshake is refused with 403: what answers there has another verify token",
            )
            .fix("the server that runs there must have this whatsapp.verify_token: restart it after a change"),
        ),
        other => Some(of_wrong_answer(url, other)),
    }
}

/// The signed probe, through the public URL.
pub(super) fn of_probe(url: &Url, answered: &Answered) -> Option<Finding> {
    match answered {
        Answered::Http(200, body) if body == probe::ANSWER => None,
        Answered::Http(401, _) => Some(
            Finding::new(
                Code::SignatureLost,
                url,
                "a rightly signed request is refused: a proxy changes the body or drops X-Hub-Signature-256, or the server there has \
                 another app secret",
            )
            .fix("pass bodies and headers on unchanged (nginx: proxy_pass alone), and restart the server after a change of whatsapp.app_secrets"),
        ),
        other => Some(of_wrong_answer(url, other)),
    }
}

fn of_wrong_answer(url: &Url, answered: &Answered) -> Finding {
    match answered {
        Answered::Nothing(why) => Finding::new(Code::PublicUrlUnreachable, url, why.clone())
            .fix("check DNS, the firewall, the proxy and its certificate; Meta accepts no self-signed certificate"),
        Answered::Http(status @ 500.., _) => {
            let what = format!(
                "it answers with {status}: a proxy that does not reach the server, or a server without its Site DB"
            );
            Finding::new(Code::PublicUrlUnreachable, url, what)
                .fix("see that twinlog runs (/readyz), and where the proxy leads")
        }
        Answered::Http(status, _) => {
            let what = format!("it answers with {status}, and not as twinlog does");
            Finding::new(Code::WebhookRoute, url, what)
                .fix("let the proxy pass /webhook (GET and POST) on to http.listen, without a login or a challenge of its own")
        }
    }
}

/// A web page of the front end.
pub(super) fn of_front_end(origin: &str, answered: &Answered) -> Option<Finding> {
    let what = match answered {
        Answered::Http(status @ 500.., _) => format!("it answers with {status}"),
        Answered::Http(..) => return None,
        Answered::Nothing(why) => why.clone(),
    };
    Some(
        Finding::new(Code::FrontEndUnreachable, origin, what)
            .fix(format!("correct http.cors_origins, or see why {origin} is down")),
    )
}

/// The public keys of JSON Web Tokens, at a URL.
pub(super) fn of_jwt_keys(url: &Url, answered: &Answered) -> Option<Finding> {
    let what = match answered {
        Answered::Http(200, body) if body.contains("\"keys\"") => return None,
        Answered::Http(status, _) => format!("it answers with {status}, and no key set"),
        Answered::Nothing(why) => why.clone(),
    };
    Some(
        Finding::new(Code::JwtKeys, url, what)
            .fix("auth.jwt_keys = \"https://PROJECT.supabase.co/auth/v1/.well-known/jwks.json\""),
    )
}

/// The server's own listeners: whether something answers at `http.listen`, and whether it is Twinlog.
pub(super) fn of_listeners(config: &Config, http: &Answered, admin: &Answered) -> Option<Finding> {
    let is_ours = matches!(admin, Answered::Http(200, body) if body.trim() == "ok");
    match http {
        // Twinlog answers a handshake without a token in this way.
        Answered::Http(403, body) if body.contains("forbidden") => None,
        Answered::Http(..) => {
            let what = format!("another program answers at {}", config.http.listen);
            Some(Finding::new(Code::ListenTaken, "http.listen", what).fix("end it, or choose another port"))
        }
        Answered::Nothing(_) if is_ours => {
            let what = format!(
                "the process answers at admin.listen, but nothing at {}",
                config.http.listen
            );
            Some(
                Finding::new(Code::ServerNotRunning, "http.listen", what).fix("run the server: twinlog run (or serve)"),
            )
        }
        Answered::Nothing(_) => Some(
            Finding::new(
                Code::ServerNotRunning,
                "http.listen",
                format!("nothing answers at {}", config.http.listen),
            )
            .fix("systemctl enable --now twinlog"),
        ),
    }
}
