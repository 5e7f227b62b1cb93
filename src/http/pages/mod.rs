//! What people leaf through: `GET /v1/conversations`, `GET /v1/conversations/{id}/messages`, `GET /v1/leads/{id}`, and
//! `POST /v1/conversations/{id}/read`.
//!
//! A page has at most `limit` rows (50; up to 200), the newest first, and `next`, which is the next page's `before`; without it
//! this was the last one. `position` is where the events stood before the rows were read: who listens from there on
//! (`/v1/events?last_event_id=…`) misses nothing. Rows of numbers that somebody may not see are answered as if they did not exist.
//!
//! | file | its job |
//! |---|---|
//! | `conversations` | pages of conversations, and of one's messages |
//! | `lead` | a lead with its conversations |
//! | `read` | a conversation that was read |
//! | `parameters` | the parameters of the query |
//! | `place` | where a page ends, as its client sees it |
//! | `answers` | the answers |

mod answers;
mod conversations;
mod lead;
mod parameters;
mod place;
mod read;

use axum::Router;
use axum::routing;

use super::state::State;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new()
        .route("/v1/conversations", routing::get(conversations::all))
        .route("/v1/conversations/{id}/messages", routing::get(conversations::messages))
        .route("/v1/conversations/{id}/read", routing::post(read::post))
        .route("/v1/leads/{id}", routing::get(lead::get))
}
