//! The Graph-compatible send: `POST /v{N}.{m}/{phone_number_id}/messages`, as in Meta's API; without a version, `whatsapp.api_version`
//! is taken.
//!
//! An existing client changes only its base URL and its token: requests, answers and errors are Meta's. Our own errors,
//! all of them in Meta's error shape:
//!
//! | case | answer |
//! |---|---|
//! | our token is missing or wrong | 401, code 190 |
//! | the number is not configured | 400, code 100, subcode 33 |
//! | the body can't be a message | 400, codes 100, 131008, 131009; no row is left |
//! | Meta refuses to send for the number (expired token, restriction) | at once Meta's status and error with the reason that is stored; the row is `cancelled` |
//! | not sent within `http.send_wait_ms` (rate limit, transient errors) | 503, code 131016; the row is `cancelled` and will never be sent, so trying again can't send it twice |
//! | it is not known whether it was sent | 409, code 100; the row is `unknown` |
//! | the Site DB is down | 503, code 2; nothing was stored or sent |
//! | `Idempotency-Key` used before for another request, or for a message that an operator cancelled | 409, code 100 |
//!
//! Messages of one conversation are sent one after the other, so `http.send_wait_ms` counts once for the message and once for
//! each message that is before it in its conversation, up to 30 s in all: ten pictures at once all get their answer.
//!
//! With an `Idempotency-Key` header, the same request again gets the answer of the first one's row. Only if that row was
//! cancelled as above, it is sent then.
//!
//! **Why 409 where the outcome is unknown.** Clients repeat 5xx, 429 and Meta's transient codes by themselves, and each repeat would
//! reach the person again. They do not repeat a 409 with code 100. Whoever asks again all the same, with the same request, gets
//! the recorded message's answer and sends nothing, while its outcome is unknown (for 15 minutes) and for a minute after it was
//! lost if it is settled by then: what is equal then is a repeat. Later an equal request is another message. Not chosen: a
//! provisional id in a 200, because everything that names a message (replies, reactions, read receipts, statuses) would
//! have to translate it for ever, and because a message that never left would have been called sent.
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
    Router::new()
        .route("/{version}/{phone_number_id}/messages", routing::post(post::send))
        .route("/{phone_number_id}/messages", routing::post(post::send_without_version))
}
