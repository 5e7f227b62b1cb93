//! Which client a request is from, by our own API tokens. They are never passed on to Meta, and Meta's tokens are not
//! accepted here.

use std::borrow::Cow;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Uri};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::ApiToken;

/// The client whose token the request carries: `Authorization: Bearer`, else `access_token` in the query, which some
/// Graph clients use (Chatwoot).
pub(super) fn client<'a>(tokens: &'a [ApiToken], headers: &HeaderMap, uri: &Uri) -> Option<&'a ApiToken> {
    let token = bearer(headers).or_else(|| query(uri, "access_token"))?;
    known(tokens, &token)
}

/// The token of the header.
pub(super) fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    // Meta takes both words.
    let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("oauth");
    known.then(|| token.trim().to_owned())
}

/// A parameter of the query string.
pub(super) fn query(uri: &Uri, name: &str) -> Option<String> {
    url::form_urlencoded::parse(uri.query()?.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The parameters of the query, without the client's token.
pub(super) fn other_parameters(uri: &Uri) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .filter(|(name, _)| !matches!(name.as_ref(), "access_token" | "appsecret_proof"))
}

/// Compares with every token, even after a match, so that the time taken does not show which one matched.
pub(super) fn known<'a>(tokens: &'a [ApiToken], token: &str) -> Option<&'a ApiToken> {
    let digest: [u8; 32] = Sha256::digest(token).into();
    let mut found = None;
    for known in tokens {
        if bool::from(known.sha256.ct_eq(&digest)) {
            found = Some(known);
        }
    }
    found
}

/// Whether two secrets are equal; the time taken depends on neither.
pub(super) fn same(one: &str, other: &str) -> bool {
    // Hashed, so that the time does not show the lengths either.
    Sha256::digest(one).ct_eq(&Sha256::digest(other)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_the_header_and_in_the_query() {
        let tokens = [("crm", "t1"), ("bot", "t2")].map(|(name, token)| ApiToken {
            name: name.to_owned(),
            sha256: Sha256::digest(token).into(),
            numbers: None,
            automation: false,
        });
        let ask = |header: Option<&str>, uri: &str| {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().unwrap());
            }
            client(&tokens, &headers, &uri.parse().unwrap()).map(|client| client.name.as_str())
        };
        assert_eq!(ask(Some("Bearer t1"), "/x"), Some("crm"));
        assert_eq!(ask(Some("bearer  t2 "), "/x"), Some("bot"));
        assert_eq!(ask(None, "/x?a=b&access_token=t2"), Some("bot"));
        for (header, uri) in [
            (None, "/x"),
            (Some("Bearer"), "/x"),
            (Some("Basic t1"), "/x"),
            (Some("Bearer t3"), "/x?access_token=t1"),
            (Some("Bearer "), "/x"),
            (None, "/x?access_token="),
        ] {
            assert_eq!(ask(header, uri), None, "{header:?} {uri}");
        }
    }
}
