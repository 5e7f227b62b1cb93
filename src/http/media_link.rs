//! Links to media: Meta's link, signed by us, so that nobody makes this server call another address with a number's token.
//!
//! Any of our servers can check a link: the key is made from the app secret. A link alone opens nothing: as with Meta's, the
//! client's token is needed too, and it must be one that may use the medium's number.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use url::Url;

use crate::provider::PhoneNumberId;

/// The path of the links, as on Meta's own media host.
pub(super) const PATH: &str = "/whatsapp_business/attachments/";
/// How long a link can be used: as long as Meta's.
const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// What the signature is for, so that it can't be one of a webhook.
const PURPOSE: &[u8] = b"twinlog link to a medium, version 1";

/// Signs and checks links.
#[derive(Debug)]
pub(super) struct MediaLinks {
    /// The app secrets: the first one signs, each one is accepted.
    keys: Vec<SecretString>,
}

/// Where clients reach this server: a base URL without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(String);

/// A link that was checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Medium {
    pub(super) phone_number_id: String,
    /// Meta's link.
    pub(super) source: Url,
}

/// Why a link opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the link is not one of this server's")]
    Forged,
    #[error("the link has expired; ask for the medium again")]
    Expired,
}

impl Place {
    #[cfg(test)]
    pub(super) fn new(base: &str) -> Self {
        Self(base.to_owned())
    }

    /// The configured one, else the one that a request was sent to.
    pub(super) fn of(public_url: Option<&Url>, headers: &HeaderMap) -> Self {
        if let Some(url) = public_url {
            return Self(url.as_str().trim_end_matches('/').to_owned());
        }
        // Behind several proxies the first value is the client's.
        let first = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?;
            Some(text.split(',').next()?.trim())
        };
        let authority = |text: &&str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
        };
        let host = first("x-forwarded-host")
            .filter(authority)
            .or_else(|| first("host").filter(authority));
        let scheme = match first("x-forwarded-proto") {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
            _ => "http",
        };
        // Without a name the links are relative.
        Self(host.map_or_else(String::new, |host| format!("{scheme}://{host}")))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl MediaLinks {
    pub(super) const fn new(keys: Vec<SecretString>) -> Self {
        Self { keys }
    }

    /// A link of ours for one of Meta's.
    pub(super) fn sign(&self, number: &PhoneNumberId, medium: &str, source: &Url, place: &Place) -> String {
        let expires = now().saturating_add(LIFETIME.as_secs());
        self.sign_until(number.as_str(), medium, source, place, expires)
    }

    fn sign_until(&self, number: &str, medium: &str, source: &Url, place: &Place, expires: u64) -> String {
        let source = URL_SAFE_NO_PAD.encode(source.as_str());
        let hash = self
            .keys
            .first()
            .and_then(|key| mac(key, number, &source, expires))
            .map_or_else(String::new, |mac| hex::encode(mac.finalize().into_bytes()));
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("mid", medium)
            .append_pair("ext", &expires.to_string())
            .append_pair("number", number)
            .append_pair("source", &source)
            .append_pair("hash", &hash)
            .finish();
        format!("{place}{PATH}?{query}")
    }

    /// Reads a link's query.
    pub(super) fn check(&self, query: &str) -> Result<Medium, LinkError> {
        let parameter = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
                .ok_or(LinkError::Forged)
        };
        let (number, source) = (parameter("number")?, parameter("source")?);
        let expires: u64 = parameter("ext")?.parse().map_err(|_| LinkError::Forged)?;
        let hash = hex::decode(parameter("hash")?).map_err(|_| LinkError::Forged)?;
        let signed =
            |key: &SecretString| mac(key, &number, &source, expires).is_some_and(|mac| mac.verify_slice(&hash).is_ok());
        if !self.keys.iter().any(signed) {
            return Err(LinkError::Forged);
        }
        if now() > expires {
            return Err(LinkError::Expired);
        }
        let source = URL_SAFE_NO_PAD.decode(source).map_err(|_| LinkError::Forged)?;
        let source = String::from_utf8(source).map_err(|_| LinkError::Forged)?;
        Ok(Medium {
            phone_number_id: number,
            source: Url::parse(&source).map_err(|_| LinkError::Forged)?,
        })
    }
}

fn mac(key: &SecretString, number: &str, source: &str, expires: u64) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()).ok()?;
    for part in [PURPOSE, number.as_bytes(), source.as_bytes(), &expires.to_be_bytes()] {
        // With its length, so that different lists of parts never give the same bytes.
        mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        mac.update(part);
    }
    Some(mac)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(keys: &[&str]) -> MediaLinks {
        MediaLinks::new(keys.iter().map(|&key| SecretString::from(key)).collect())
    }

    fn link(expires: u64) -> String {
        let source = "https://lookaside.fbsbx.com/x/?mid=7&hash=a%2Fb".parse().unwrap();
        let link = links(&["old"]).sign_until("1065", "7", &source, &Place::new("https://us"), expires);
        link.strip_prefix("https://us/whatsapp_business/attachments/?")
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_link_is_ours_until_it_expires_and_the_secret_may_change() {
        let query = link(now() + 60);
        let medium = links(&["new", "old"]).check(&query).unwrap();
        assert_eq!(medium.phone_number_id, "1065");
        assert_eq!(
            medium.source.as_str(),
            "https://lookaside.fbsbx.com/x/?mid=7&hash=a%2Fb"
        );
        assert_eq!(links(&["new"]).check(&query), Err(LinkError::Forged));
        assert_eq!(links(&["old"]).check(&link(now() - 1)), Err(LinkError::Expired));
    }

    #[test]
    fn a_changed_link_opens_nothing() {
        let query = link(now() + 60);
        for changed in [
            query.replace("number=1065", "number=1066"),
            query.replace("ext=", "ext=1"),
            query.replace("source=", "source=a"),
            query.replace("hash=", "hash=0"),
            query.replace("hash=", "hush="),
            String::new(),
        ] {
            assert_eq!(links(&["old"]).check(&changed), Err(LinkError::Forged), "{changed}");
        }
        assert_eq!(links(&[]).check(&query), Err(LinkError::Forged));
    }

    #[test]
    fn links_lead_where_the_request_went() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        let plain = headers(&[("host", "wa.example.com:8080")]);
        assert_eq!(Place::of(None, &plain), Place::new("http://wa.example.com:8080"));
        let proxied = headers(&[
            ("host", "10.0.0.1"),
            ("x-forwarded-host", "wa.example.com, inner"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(Place::of(None, &proxied), Place::new("https://wa.example.com"));
        let public = "https://public.example.com/wa/".parse().unwrap();
        assert_eq!(
            Place::of(Some(&public), &plain),
            Place::new("https://public.example.com/wa")
        );
        assert_eq!(Place::of(None, &headers(&[("host", "a/b")])), Place::new(""));
    }
}
