//! Routes that front ends call already: sending a text, the health of a number, and the log of a page.
//!
//! | file | its job |
//! |---|---|
//! | `account_health` | `GET /api/whatsapp/accounts/{id}/health` |
//! | `verdict` | whether a number is degraded or merely quiet; pure |
//! | `whatsapp_send` | `POST /functions/v1/whatsapp-send` |
//! | `log_batch` | `POST /api/logging/batch` |

mod account_health;
mod log_batch;
mod verdict;
mod whatsapp_send;

use axum::Router;
use axum::routing;

use super::state::State;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new()
        .route("/api/whatsapp/accounts/{id}/health", routing::get(account_health::get))
        .route("/functions/v1/whatsapp-send", routing::post(whatsapp_send::post))
        .route("/api/logging/batch", routing::post(log_batch::post))
}
