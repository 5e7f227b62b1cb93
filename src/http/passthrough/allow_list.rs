//! Which calls are allowed: those that send nothing.

use std::borrow::Cow;

use axum::http::{Method, Uri};

/// Parameters that make a GET do more than read.
const REFUSED_PARAMETERS: [&str; 3] = ["method", "batch", "include_headers"];
/// Paths with these last segments send messages.
const SENDING: [&str; 2] = ["messages", "marketing_messages"];

/// The parameters of the query string, decoded.
pub(super) fn parameters(uri: &Uri) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
}

/// Whether a call is one of those that send nothing.
pub(super) fn passes(method: &Method, segments: &[&str], uri: &Uri) -> bool {
    // No escapes and no dots, so that Meta reads the path exactly as it is checked here.
    let plain = |segment: &&str| {
        !segment.is_empty()
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if segments.is_empty() || !segments.iter().all(plain) {
        return false;
    }
    let refused = |key: &str| {
        REFUSED_PARAMETERS
            .iter()
            .any(|refused| key.eq_ignore_ascii_case(refused))
    };
    if parameters(uri).any(|(key, _)| refused(&key)) {
        return false;
    }
    let last = segments.last().copied().unwrap_or_default();
    match *method {
        Method::GET => !SENDING.iter().any(|sending| last.eq_ignore_ascii_case(sending)),
        Method::POST => matches!(segments, [_, "media"]),
        Method::DELETE => matches!(segments, [id] if id.bytes().all(|byte| byte.is_ascii_digit())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_send_nothing_pass() {
        for (method, path, expected) in [
            (Method::GET, "1065", true),
            (Method::GET, "1022/message_templates?limit=5", true),
            (Method::GET, "1065?fields=throughput&access_token=x", true),
            (Method::POST, "1065/media", true),
            (Method::DELETE, "998877", true),
            (Method::POST, "1065/messages", false),
            (Method::POST, "1065/marketing_messages", false),
            (Method::POST, "1065/messages/", false),
            (Method::POST, "1065//media", false),
            (Method::POST, "", false),
            (Method::GET, "", false),
            (Method::GET, "1065/messages", false),
            (Method::GET, "1065/Messages", false),
            (Method::GET, "1065/%6dessages?method=post", false),
            (Method::GET, "1065/../x", false),
            (Method::GET, "1065?Method=post", false),
            (Method::GET, "1065?%6dethod=post", false),
            (Method::GET, "1065?batch=[]", false),
            (Method::DELETE, "1065/media", false),
            (Method::DELETE, "me", false),
            (Method::PUT, "1065", false),
        ] {
            let uri: Uri = format!("/v26.0/{path}").parse().unwrap();
            let segments: Vec<&str> = uri.path().trim_start_matches('/').split('/').skip(1).collect();
            let segments = if segments == [""] { vec![] } else { segments };
            assert_eq!(passes(&method, &segments, &uri), expected, "{method} {path}");
        }
    }
}
