//! The Graph-compatible send: `POST /v{N}.{m}/{phone_number_id}/messages`, as in Meta's API.
//!
//! An existing client changes only its base URL and its token: requests, answers and errors are Meta's. Our own errors,
//! all of them in Meta's error shape:
//!
//! | case | answer |
//! |---|---|
//! | our token is missing or wrong | 401, code 190 |
//! | the number is not configured | 400, code 100, subcode 33 |
//! | the body can't be a message | 400, codes 100, 131008, 131009; no row is left |
//! | not sent within `http.send_wait_ms` (rate limit, number held, transient errors) | 503, code 131016; the row is `cancelled` and will never be sent, so trying again can't send it twice |
//! | it is not known whether it was sent | 504, code 131000; the row is `unknown` |
//! | the Site DB is down | 503, code 2; nothing was stored or sent |
//! | `Idempotency-Key` used before for another request, or for a message that an operator cancelled | 409, code 100 |
//!
//! With an `Idempotency-Key` header, the same request again gets the answer of the first one's row. Only if that row was
//! cancelled as above, it is sent then.
//!
//! | file | its job |
//! |---|---|
//! | `post` | the route, step by step |
//! | `outcome` | a message's status → the answer that Meta would give |

mod outcome;
mod post;

use axum::Router;
use axum::routing;

use super::state::State;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new().route("/{version}/{phone_number_id}/messages", routing::post(post::send))
}
