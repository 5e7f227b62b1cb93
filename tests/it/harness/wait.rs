//! Waits until a condition holds: polls with a deadline, instead of a sleep of a guessed length.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// A deadline for what takes milliseconds on an idle machine; tests also run on busy ones.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The pause between two polls, at first.
const POLL: Duration = Duration::from_millis(10);

/// The longest pause between two polls.
const LONGEST_POLL: Duration = Duration::from_millis(200);

/// After a longer wait the pause is longer: a tenth of it, so that no test takes much longer, and hundreds of looks, of which
/// some start a process, don't take the time from what is waited for.
fn pause(waited: Duration) -> Duration {
    (waited / 10).clamp(POLL, LONGEST_POLL)
}

/// Calls `probe` until it is `Ok` and returns that.
///
/// # Panics
/// With the last `Err` once `deadline` has passed, also if a probe hangs.
pub(crate) async fn eventually<T, E, F, Fut>(what: &str, deadline: Duration, mut probe: F) -> T
where
    E: Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut last = None;
    while let Some(left) = deadline.checked_sub(start.elapsed()) {
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(observed)) => last = Some(observed),
            Err(_) => panic!("not within {deadline:?}: {what}; the last look hung, the one before saw {last:?}"),
        }
        tokio::time::sleep(pause(start.elapsed())).await;
    }
    panic!("not within {deadline:?}: {what}; last seen: {last:?}");
}

/// Calls `observe` until `is` holds for its value, and returns that value.
///
/// # Panics
/// With the last observed value once `deadline` has passed.
pub(crate) async fn eventually_is<T, F, Fut>(
    what: &str,
    deadline: Duration,
    mut observe: F,
    is: impl Fn(&T) -> bool,
) -> T
where
    T: Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = T>,
{
    eventually(what, deadline, || {
        let observed = observe();
        let is = &is;
        async move {
            let observed = observed.await;
            if is(&observed) { Ok(observed) } else { Err(observed) }
        }
    })
    .await
}

/// Calls `observe` until it returns `expected`.
///
/// # Panics
/// With the last observed value once `deadline` has passed.
pub(crate) async fn eventually_equal<T, F, Fut>(what: &str, deadline: Duration, expected: T, observe: F)
where
    T: Debug + PartialEq,
    F: FnMut() -> Fut,
    Fut: Future<Output = T>,
{
    let what = format!("{what} (awaited: {expected:?})");
    eventually_is(&what, deadline, observe, |observed| *observed == expected).await;
}

/// Polls for this long and fails at the first `Err`: for what must not happen.
///
/// # Panics
/// With that `Err`.
pub(crate) async fn holds_for<E, F, Fut>(what: &str, duration: Duration, mut probe: F)
where
    E: Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let start = Instant::now();
    while start.elapsed() < duration {
        if let Err(seen) = probe().await {
            panic!(
                "after {:?} it does not hold any more: {what}; seen: {seen:?}",
                start.elapsed()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}
