//! What an error means for the work that met it, and how long to wait before a new attempt.
//!
//! Which SQLSTATE means what is decided in [`crate::postgres::disposition`].

use std::time::Duration;

use rand::Rng;

/// Whose fault an error is, and so what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The same work can succeed later without anybody doing anything: reconnect or repeat, with backoff.
    Transient,
    /// Every row would fail alike until a person acts: hold the table or the pipeline and say so.
    Systemic,
    /// This row can never succeed as it is: park its key, go on with the others.
    Row,
}

impl Disposition {
    /// The bounded label value and log field.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Systemic => "systemic",
            Self::Row => "row",
        }
    }
}

/// A capped exponential wait with full jitter: attempt 1 waits up to `base`, each further one up to twice as long.
///
/// Full jitter (uniform over the upper half) so that many waiters never come back in step.
#[must_use]
pub fn backoff(attempt: u32, base: Duration, cap: Duration) -> Duration {
    let exponent = attempt.saturating_sub(1).min(20);
    let ceiling = base.saturating_mul(1 << exponent).min(cap);
    let floor = ceiling / 2;
    floor + (ceiling - floor).mul_f64(rand::rng().random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_cap_and_never_beyond() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        for attempt in 0..100 {
            let wait = backoff(attempt, base, cap);
            assert!(wait <= cap && wait >= Duration::from_millis(50), "{attempt}: {wait:?}");
        }
        assert!(backoff(50, base, cap) >= cap / 2);
    }
}
