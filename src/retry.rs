//! What an error means for the work that met it: the one SQLSTATE table, and how long to wait before a new attempt.
//!
//! Everything that talks to a database asks [`disposition`]; nobody else looks at a SQLSTATE. The rule for the
//! unknown: an unknown *class* is [`Disposition::Systemic`] (hold and say so), never the row's own, so that
//! a surprise can never dead-letter a table.
//!
//! Source: <https://www.postgresql.org/docs/current/errcodes-appendix.html>

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

/// The table: what a SQLSTATE means to the work that met it.
#[must_use]
pub fn disposition(sqlstate: &str) -> Disposition {
    use Disposition::{Row, Systemic, Transient};
    match sqlstate {
        // The statement was longer than a limit that the operator set, or a lock was held too long: try again.
        "57014" | "55P03" | "25P03" | "25P04" => Transient,
        // The server is going down, has crashed, or is coming up.
        "57P01" | "57P02" | "57P03" | "57P05" => Transient,
        // Somebody else uses the object now (a slot whose last reader the server has not missed yet).
        "55006" => Transient,
        // A database that was dropped will not come back by waiting.
        "57P04" => Systemic,
        // Disk full, out of memory, too many connections, configured limit: the first needs a person.
        "53100" => Systemic,
        // A value too long for an index (54000 "index row size exceeds"): the row's own.
        "54000" => Row,
        // Two rows of one statement met in ON CONFLICT: our own batching; replayed in stream order, then the row's own.
        "21000" => Row,
        // A trigger's or function's RAISE EXCEPTION on the target: provoked by this row.
        "P0001" => Row,
        // Invalid value for an enum, domain or type: class 22. A wrong parameter *count* or type is ours: class 42.
        // Row-level security (42501) refuses by right, not by row: a person must grant it.
        // A view or rule with a check option is provoked by the row (class 44).
        // The transaction was chosen as a victim, or could not be serialised.
        "40001" | "40P01" | "40003" => Transient,
        // An assertion of a deferred constraint at commit.
        "40002" => Row,
        // NaN or infinity stored where an index forbids, an untranslatable character: the row's own.
        _ => match sqlstate.get(..2) {
            Some("08" | "40" | "53") => Transient,
            Some("22" | "23" | "44") => Row,
            // Internal error or corruption, file I/O: a person, now.
            Some("58" | "XX" | "F0") => Systemic,
            _ => Systemic,
        },
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
    fn every_class_that_matters_has_its_disposition() {
        use Disposition::{Row, Systemic, Transient};
        for (sqlstate, expected) in [
            ("08006", Transient),
            ("40001", Transient),
            ("40P01", Transient),
            ("53300", Transient),
            ("53100", Systemic),
            ("57P01", Transient),
            ("55P03", Transient),
            ("55006", Transient),
            ("22001", Row),
            ("22P02", Row),
            ("22021", Row),
            ("23502", Row),
            ("23503", Row),
            ("23505", Row),
            ("23514", Row),
            ("23P01", Row),
            ("44000", Row),
            ("P0001", Row),
            ("42501", Systemic),
            ("42P01", Systemic),
            ("42703", Systemic),
            ("42804", Systemic),
            ("28P01", Systemic),
            ("3D000", Systemic),
            ("55000", Systemic),
            ("XX001", Systemic),
            ("", Systemic),
            ("é", Systemic),
        ] {
            assert_eq!(disposition(sqlstate), expected, "{sqlstate}");
        }
    }

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
