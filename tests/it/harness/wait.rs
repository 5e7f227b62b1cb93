//! Waiting for something to come true: polls with a deadline, never a sleep that hopes.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// A deadline for what takes milliseconds on a quiet machine; tests run on machines that are not.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

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
    let end = Instant::now() + deadline;
    let mut last = None;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(observed)) => last = Some(observed),
            Err(_) => panic!("not within {deadline:?}: {what}; the last look hung, the one before saw {last:?}"),
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("not within {deadline:?}: {what}; last seen: {last:?}");
}

/// Calls `observe` until it gives `expected`.
///
/// # Panics
/// With the last observed value once `deadline` has passed.
pub(crate) async fn eventually_equal<T, F, Fut>(what: &str, deadline: Duration, expected: T, mut observe: F)
where
    T: Debug + PartialEq,
    F: FnMut() -> Fut,
    Fut: Future<Output = T>,
{
    eventually(what, deadline, || {
        let observed = observe();
        let expected = &expected;
        async move {
            let observed = observed.await;
            if observed == *expected { Ok(()) } else { Err(observed) }
        }
    })
    .await;
}
