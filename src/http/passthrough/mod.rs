//! Other Graph calls that a client makes: passed on with the number's own token.
//!
//! These are set-up checks (`GET /{number}`, templates), media and the like. No call that is passed on may send a message,
//! because then a message would be sent without a row, and the Graph API has several ways to send one
//! (`marketing_messages`, `method=post` on a GET, batches). So there is a short list of calls that are allowed: GETs
//! without those parameters, media uploads and deletions.
//!
//! | file | its job |
//! |---|---|
//! | `allow_list` | which calls are allowed |
//! | `account` | chooses the number whose token is used |

mod account;
mod allow_list;

use axum::extract::{Request, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;

use super::state::State;
use super::{answer, auth, forward, limits};
use crate::provider::ApiVersion;
use crate::provider::cloud::GraphError;
use crate::provider::cloud::client::PassedCall;

/// All paths that no other family has. A path that begins with a version is a Graph call.
pub(super) async fn call(
    Extract(state): Extract<State>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let path = uri.path().trim_start_matches('/');
    let mut segments = path.split('/');
    if segments.next().and_then(ApiVersion::parse).is_none() {
        return answer::not_found(&uri);
    }
    if auth::client(&state.settings.tokens, &headers, &uri).is_none() {
        return answer::graph_unauthorized();
    }
    let segments: Vec<&str> = segments.collect();
    if !allow_list::passes(&method, &segments, &uri) {
        return answer::method_not_allowed(uri).await;
    }
    let Some(chosen) = account::choose(&state.settings.accounts, &segments, &uri) else {
        let error = GraphError::new(100, "Invalid parameter")
            .with_details("several numbers are configured: say whose token to use with phone_number_id=… in the query");
        return answer::graph_error(StatusCode::BAD_REQUEST, &error);
    };
    let body = match limits::body(request).await {
        Ok(body) => body,
        Err(error) => return answer::graph_body_error(error),
    };
    let call = PassedCall {
        content_type: (method == Method::POST)
            .then(|| headers.get(CONTENT_TYPE)?.to_str().ok().map(ToOwned::to_owned))
            .flatten(),
        method,
        path: without_token(path, &uri),
        body,
    };
    forward::forward(&chosen.account, call).await
}

/// Path and query for Meta, without the client's token: that is our own, and Meta must not see it.
fn without_token(path: &str, uri: &Uri) -> String {
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(allow_list::parameters(uri).filter(|(key, _)| key != "access_token"))
        .finish();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}
