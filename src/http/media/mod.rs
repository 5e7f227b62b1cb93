//! Media on their way through: uploads to Meta, and downloads over links of ours.
//!
//! A client never talks to Meta's media hosts: it has no token that they would take, and its own token must not get there. So
//! the `url` in a medium's answer is a link of ours, and this server fetches the bytes with the number's token. Both
//! directions are streamed: a body is never held in memory as a whole.
//!
//! | file | its job |
//! |---|---|
//! | `upload` | `POST /v{N}.{m}/{number}/media` |
//! | `download` | `GET` of a link |

mod download;
mod upload;

use axum::Router;
use axum::routing;

use super::media_link;
use super::state::State;

/// The route of uploads, which may take longer than other requests.
const UPLOAD: &str = "/{version}/{phone_number_id}/media";
/// The same without a version.
const UPLOAD_WITHOUT_VERSION: &str = "/{phone_number_id}/media";

/// Whether a route is that of uploads.
pub(super) fn is_upload(route: &str) -> bool {
    [UPLOAD, UPLOAD_WITHOUT_VERSION].contains(&route)
}

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new()
        .route(UPLOAD, routing::post(upload::post))
        .route(UPLOAD_WITHOUT_VERSION, routing::post(upload::post_without_version))
        .route(media_link::PATH, routing::get(download::get))
        .route(media_link::PATH.trim_end_matches('/'), routing::get(download::get))
}
