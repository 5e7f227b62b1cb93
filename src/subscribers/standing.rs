//! How a subscriber stands, for the health report: in a sentence, with what to do.

use std::time::Duration;

use crate::health::{Standing, Trouble};
use crate::site_db::subscribers::Overview;

/// A subscriber that is so far behind is in trouble, whatever the cause.
const BEHIND: Duration = Duration::from_secs(300);

pub(super) fn standing(overview: &Overview) -> Standing {
    let (kind, reason) = if let Some(problem) = &overview.problem {
        let what = "look at the subscriber; webhooks wait for it, and are delivered when it takes them";
        ("refuses", format!("it takes no webhooks: {problem}: {what}"))
    } else if overview.lag_seconds > BEHIND.as_secs_f64() {
        let lag = overview.lag_seconds;
        (
            "behind",
            format!("its oldest webhook has waited for {lag:.0} s: the subscriber is slow, or refuses some"),
        )
    } else if overview.given_up > 0 {
        let (count, name) = (overview.given_up, &overview.name);
        (
            "given_up",
            format!(
                "{count} webhooks were given up: twinlog subscribers retry {name} delivers them again, twinlog subscribers discard {name} forgets them"
            ),
        )
    } else {
        return Standing::Ready;
    };
    Standing::Degraded(Trouble::new(kind, reason))
}
