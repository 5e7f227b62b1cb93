//! Webhooks as a subscriber gets them: what it chose, with the clients' own values in statuses.

use std::collections::HashMap;

use bytes::Bytes;
use uuid::Uuid;

use crate::provider::cloud::handed_on::{self, HandedOn, Selection};
use crate::site_db::{Pool, SiteError, messages};

/// More bytes are read on a thread of their own: reading as many takes about a millisecond.
const LARGE: usize = 64 * 1024;

/// Each of these bodies for the subscriber; `None`: nothing in it is for this one.
pub(super) async fn prepare(
    pool: &Pool,
    selection: &Selection,
    bodies: Vec<Bytes>,
) -> Result<Vec<Option<HandedOn>>, SiteError> {
    let large = bodies.iter().map(Bytes::len).sum::<usize>() > LARGE;
    let (bodies, ids) = beside(large, move || {
        let ids: Vec<Uuid> = bodies.iter().flat_map(|body| handed_on::opaque_ids(body)).collect();
        (bodies, ids)
    })
    .await?;
    let own: HashMap<Uuid, Option<String>> = match ids.as_slice() {
        [] => HashMap::new(),
        ids => messages::client_opaques(pool, ids).await?.into_iter().collect(),
    };
    let selection = selection.clone();
    beside(large, move || {
        bodies
            .iter()
            .map(|body| handed_on::hand_on(body, &selection, &own))
            .collect()
    })
    .await
}

async fn beside<T: Send + 'static>(large: bool, work: impl FnOnce() -> T + Send + 'static) -> Result<T, SiteError> {
    if !large {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| SiteError::Stopped)
}
