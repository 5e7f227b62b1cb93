//! A pool with the statements that are prepared on its connections.

use super::{Pool, messages};
use crate::config::Site;

impl Pool {
    /// A pool that connects at its first use, so that the server starts even if the Site DB is down.
    #[must_use]
    pub fn connect(site: &Site) -> Self {
        Self::connect_with(site, messages::before_a_call)
    }
}
