//! Whether what comes in is genuine, for the health report: a wrong app secret refuses everything that Meta sends, and looks
//! like a quiet day.
//!
//! Anybody may send what is refused. So it is a trouble only while nothing genuine comes: then either the secret is wrong, or
//! a stranger writes and Meta is quiet.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::health::{Standing, Trouble};
use crate::provider::callback::SignatureError;

/// So many, one after the other, are a trouble: Meta repeats what is refused.
const MANY: u64 = 3;
/// And so long ago is over.
const RECENT: Duration = Duration::from_secs(600);

/// What came in since something genuine came.
#[derive(Debug, Default)]
pub(super) struct Genuine(Mutex<Refused>);

#[derive(Debug, Default, Clone, Copy)]
struct Refused {
    count: u64,
    last: Option<(Instant, SignatureError)>,
}

impl Genuine {
    /// A webhook was checked.
    pub(super) fn checked(&self, result: Result<(), SignatureError>) {
        let mut refused = self.refused();
        match result {
            Ok(()) => *refused = Refused::default(),
            Err(error) => {
                refused.count = refused.count.saturating_add(1);
                refused.last = Some((Instant::now(), error));
            }
        }
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        let Refused { count, last } = *self.refused();
        match last {
            Some((at, error)) if count >= MANY && now.saturating_duration_since(at) < RECENT => {
                let reason = format!(
                    "{count} webhooks were refused and none was accepted since the first of them: {error}; {}",
                    error.hint()
                );
                Standing::Degraded(Trouble::new("refused", reason))
            }
            _ => Standing::Ready,
        }
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refusals_are_a_trouble_until_something_genuine_comes_or_they_end() {
        let genuine = Genuine::default();
        let is_ready = || genuine.standing(Instant::now()) == Standing::Ready;
        let refuse = |times| (0..times).for_each(|_| genuine.checked(Err(SignatureError::Wrong)));
        refuse(2);
        assert!(is_ready());
        refuse(1);
        assert!(!is_ready());
        genuine.checked(Ok(()));
        assert!(is_ready());
        refuse(3);
        assert!(!is_ready());
        tokio::time::advance(RECENT).await;
        assert!(is_ready());
    }
}
