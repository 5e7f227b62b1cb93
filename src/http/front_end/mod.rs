//! Routes that front ends call already: the health of a number, and the log of a page.
//!
//! | file | its job |
//! |---|---|
//! | `account_health` | `GET /api/whatsapp/accounts/{id}/health` |
//! | `verdict` | whether a number is degraded or merely quiet; pure |
//! | `log_batch` | `POST /api/logging/batch` |

mod account_health;
mod log_batch;
mod verdict;

use axum::Router;
use axum::routing;

use super::state::State;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new()
        .route("/api/whatsapp/accounts/{id}/health", routing::get(account_health::get))
        .route("/api/logging/batch", routing::post(log_batch::post))
}
