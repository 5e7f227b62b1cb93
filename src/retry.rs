//! What an error means for the work that met it, and how long to wait before the next attempt.
//!
//! Which SQLSTATE means what is decided in [`crate::postgres::disposition`].

use std::time::Duration;

use rand::Rng;

/// What an error means, and so what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The same work can succeed later by itself: reconnect or repeat it, with a backoff.
    Transient,
    /// Every row would fail in the same way until a person acts: hold the table or the pipeline, with the reason.
    Systemic,
    /// This row can never succeed as it is: park its key and go on with the other rows.
    Row,
}

impl Disposition {
    /// As a label value and a log field.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Systemic => "systemic",
            Self::Row => "row",
        }
    }
}

/// An exponential wait up to `cap`: attempt 1 waits up to `base`, each further one up to twice as long.
///
/// Random over the upper half of that time, so that many waiters do not retry at the same moment.
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
