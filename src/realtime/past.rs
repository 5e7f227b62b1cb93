//! What happened before: read from the Site DB a portion at a time, once for all listeners that come back at about the same place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::frame::{self, Frame};
use super::place::Place;
use crate::site_db::events::{self, Position, Read};
use crate::site_db::{Pool, SiteError};

/// How many portions are kept, and for how long: after a restart thousands of listeners come back within seconds.
const KEPT: (usize, Duration) = (8, Duration::from_secs(5));

/// The past. One reads at a time, so that listeners never take more than one connection from sends and webhooks.
#[derive(Debug)]
pub(super) struct Past {
    pool: Pool,
    portions: Mutex<VecDeque<Arc<Portion>>>,
}

/// The frames between two places, without a gap.
#[derive(Debug)]
pub(super) struct Portion {
    from: Position,
    /// The era in which it was read (see [`Live::era`](super::live::Live::era)).
    pub(super) era: u64,
    /// Everything up to here is in it.
    pub(super) to: Place,
    pub(super) frames: Vec<Arc<Frame>>,
    /// The events, by which a place is known.
    positions: Vec<Position>,
    read: Instant,
}

impl Past {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            portions: Mutex::default(),
        }
    }

    /// What came after a place. `era`: the present one. `None`: it is not known any more. A portion whose end is the place itself: there is nothing.
    pub(super) async fn after(&self, place: Place, era: u64) -> Result<Option<Arc<Portion>>, SiteError> {
        let mut portions = self.portions.lock().await;
        portions.retain(|portion| portion.era == era && portion.read.elapsed() < KEPT.1);
        if let Some(portion) = portions.iter().find(|portion| portion.holds(place)) {
            return Ok(Some(Arc::clone(portion)));
        }
        let from = place.read_from();
        let Read::Events(mut found) = events::read_after(&self.pool, from).await? else {
            return Ok(None);
        };
        found.truncate(frame::at_once(&found));
        let Some(last) = found.last() else {
            let nothing = Portion {
                from,
                era,
                to: place,
                frames: Vec::new(),
                positions: Vec::new(),
                read: Instant::now(),
            };
            return Ok(Some(Arc::new(nothing)));
        };
        let portion = Arc::new(Portion {
            from,
            era,
            to: Place::after(last.position),
            frames: frame::frames(&self.pool, &found)
                .await?
                .into_iter()
                .map(Arc::new)
                .collect(),
            positions: found.iter().map(|event| event.position).collect(),
            read: Instant::now(),
        });
        portions.push_back(Arc::clone(&portion));
        if portions.len() > KEPT.0 {
            portions.pop_front();
        }
        Ok(Some(portion))
    }
}

impl Portion {
    /// Whether what comes after the place is in it.
    fn holds(&self, place: Place) -> bool {
        place.read_from() == self.from || (place < self.to && self.positions.contains(&place.position))
    }
}
