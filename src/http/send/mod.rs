//! The Graph-compatible send: `POST /v{N}.{m}/{phone_number_id}/messages`, as Meta's own.
//!
//! An existing client changes its base URL and its token, nothing else: requests, answers and errors are Meta's. What is
//! ours beyond that, all of it in Meta's error shape:
//!
//! | case | answer |
//! |---|---|
//! | our token is missing or wrong | 401, code 190 |
//! | the number is not configured | 400, code 100, subcode 33 |
//! | the body can't be a message | 400, codes 100, 131008, 131009; no row is left |
//! | not sent within `http.send_wait_ms` (rate limit, number held, errors that pass) | 503, code 131016; the row is `cancelled` and will never be sent, so trying again can't duplicate |
//! | it is not known whether it was sent | 504, code 131000; the row is `unknown` |
//! | the Site DB is down | 503, code 2; nothing was stored or sent |
//! | `Idempotency-Key` used before for another request, or for a message that an operator cancelled | 409, code 100 |
//!
//! With an `Idempotency-Key` header, the same request again gives the same row's answer, whatever became of the first:
//! only a row that was cancelled as above is sent then.
//!
//! | file | its job |
//! |---|---|
//! | `post` | the route, step by step |
//! | `outcome` | what became of a message, as Meta would answer it |

mod outcome;
mod post;

use axum::Router;
use axum::routing;

use super::state::State;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new().route("/{version}/{phone_number_id}/messages", routing::post(post::send))
}
