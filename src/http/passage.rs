//! The other Graph calls that a client of Meta's makes: passed through with the number's own token.
//!
//! Set-up probes (`GET /{number}`, templates), media and the like. It must not become a way around the promise that no
//! message leaves without a row, and the Graph API has several doors for that (`marketing_messages`, `method=post` on a
//! GET, batches). So it is a short list of what passes and not one of what doesn't: GETs without those parameters, media
//! uploads and deletions.

use axum::extract::{Request, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;

use super::graph::{is_version, passed_on, unauthorized};
use super::{State, answer, auth};
use crate::config::Account;
use crate::outbox::Call;
use crate::provider::cloud::GraphError;

/// Parameters with which a GET is more than a GET.
const REFUSED_PARAMETERS: [&str; 3] = ["method", "batch", "include_headers"];
/// Last segments that send.
const SENDING: [&str; 2] = ["messages", "marketing_messages"];

/// Everything under a version that is no send.
pub(super) async fn call(
    Extract(state): Extract<State>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let path = uri.path().trim_start_matches('/');
    let mut segments = path.split('/');
    if !segments.next().is_some_and(is_version) {
        return answer::not_found(&uri);
    }
    let config = &state.0.config;
    if auth::client(&config.tokens, &headers, &uri).is_none() {
        return unauthorized();
    }
    let segments: Vec<&str> = segments.collect();
    if !passes(&method, &segments, &uri) {
        return answer::method_not_allowed(uri).await;
    }
    let Some(account) = account(&config.whatsapp.accounts, &segments, &uri) else {
        let error = GraphError::new(100, "Invalid parameter")
            .with_details("several numbers are configured: say whose token to use with phone_number_id=… in the query");
        return answer::graph_error(StatusCode::BAD_REQUEST, &error);
    };
    let body = match answer::body(request).await {
        Ok(body) => body,
        Err((status, why)) => {
            return answer::graph_error(status, &GraphError::new(100, "Invalid parameter").with_details(why));
        }
    };
    // Our token stays here.
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters(&uri).filter(|(key, _)| key != "access_token"))
        .finish();
    let call = Call {
        content_type: (method == Method::POST)
            .then(|| headers.get(CONTENT_TYPE)?.to_str().ok().map(ToOwned::to_owned))
            .flatten(),
        method,
        path: if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{query}")
        },
        body,
    };
    passed_on(&state, &account.phone_number_id, call).await
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
}

/// Whether a call is one of those that send nothing.
fn passes(method: &Method, segments: &[&str], uri: &Uri) -> bool {
    // No escapes and no dots alone: what is checked here is what Meta reads.
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

/// Whose token a call needs: the number's or the business account's that it names, else the only one.
fn account<'a>(accounts: &'a [Account], segments: &[&str], uri: &Uri) -> Option<&'a Account> {
    let named = auth::query(uri, "phone_number_id");
    let first = segments.first().copied().unwrap_or_default();
    let number = |id: &str| accounts.iter().find(|account| account.phone_number_id == id);
    number(first)
        .or_else(|| {
            accounts
                .iter()
                .find(|account| account.waba_id.as_deref() == Some(first))
        })
        .or_else(|| number(&named?))
        .or(match accounts {
            [account] => Some(account),
            _ => None,
        })
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
