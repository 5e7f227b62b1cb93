//! Hands webhooks on to other receivers (`[[subscribers]]`), as Meta would deliver them: Meta gives an app one callback, and whoever
//! puts Twinlog there must not lose the others.
//!
//! ```text
//! webhook committed, and a row of twinlog.deliveries for each subscriber, in one transaction ─→ 200 to Meta
//!        the server that has the lease of a subscriber: oldest rows → POST, signed ─→ 2xx: the row is deleted
//!                                                                                 └─→ else: again later, given up in the end
//! ```
//!
//! - **Nothing is lost.** What waits is in the Site DB until the subscriber has taken it. A server that dies after the answer and
//!   before the row is deleted delivers it again, as Meta does in such a case.
//! - **In order.** Webhooks that share a person (or a number's notice) follow each other, also over failures; others overtake
//!   one that fails.
//! - **Apart.** Each subscriber has a task, a few connections to it and a bounded number of rows in memory of its own. None delays another, or
//!   the 200 to Meta.
//! - **Handshake.** A new address or token is asked as Meta asks, and gets nothing before it has answered.
//!
//! | file | its job |
//! |---|---|
//! | `deliverer` | one subscriber: lease, handshake, deliveries |
//! | `exchange` | records what became of webhooks, and loads the next ones |
//! | `given_up` | what has waited for too long |
//! | `noted` | webhooks are refused until they are kept for all subscribers |
//! | `queue` | which webhook may be delivered next; pure |
//! | `prepared` | the webhooks as the subscriber gets them |
//! | `receiver` | the subscriber's address: POST and handshake |
//! | `standing` | how a subscriber stands, in a sentence |
//! | `removed` | subscribers that no server has in its configuration any more |
//!
//! Not here: what a webhook for a subscriber looks like (`provider`), statements (`site_db`).

mod deliverer;
mod exchange;
mod given_up;
mod noted;
mod prepared;
mod queue;
mod receiver;
mod removed;
mod standing;

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::deliverer::Deliverer;
use crate::config;
use crate::health::Health;
use crate::site_db::Pool;

pub use noted::Noted;
pub use receiver::ReceiverSetupError;

/// What the name of a subscriber's component in the health report begins with.
pub const COMPONENT: &str = "subscriber ";

/// How often a deliverer reports at least: a round takes less, with all of its limits.
const ROUND: Duration = Duration::from_secs(30);

/// Starts to deliver to all subscribers. `give_up_after`: how long a webhook is tried. `arrivals` changes when a webhook was stored by
/// this process. Webhooks must not be stored before all are [`Noted`].
///
/// # Errors
/// A client for HTTPS could not be set up.
pub fn start(
    pool: &Pool,
    subscribers: &[config::Subscriber],
    give_up_after: Duration,
    arrivals: &watch::Receiver<()>,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(JoinSet<()>, Noted), ReceiverSetupError> {
    let (mut tasks, noted) = (JoinSet::new(), Noted::of(subscribers.len()));
    for subscriber in subscribers {
        let component = health
            .component(format!("{COMPONENT}{}", subscriber.name))
            .reports_every(ROUND);
        let deliverer = Deliverer::new(
            pool.clone(),
            subscriber,
            give_up_after,
            arrivals.clone(),
            noted.clone(),
            component,
        )?;
        tasks.spawn(deliverer.run(stop.clone()));
    }
    let names = subscribers.iter().map(|subscriber| subscriber.name.clone()).collect();
    tasks.spawn(removed::run(pool.clone(), names, give_up_after, stop.clone()));
    Ok((tasks, noted))
}
