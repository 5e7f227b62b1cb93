//! The one SQLSTATE table: whether an error is temporary, one row's own, or needs an operator.
//!
//! Nothing else decides by a SQLSTATE. An unknown *class* is [`Disposition::Systemic`] (hold and say so), never the
//! row's own, so that a new kind of error can't park all rows of a table.
//!
//! Source: <https://www.postgresql.org/docs/current/errcodes-appendix.html>

use crate::retry::Disposition;

/// A statement that writes, in a database or a session that takes no writes.
pub const READ_ONLY: &str = "25006";
/// Postgres ended one of the transactions that waited for each other in a circle: nothing of it is stored.
pub const DEADLOCK: &str = "40P01";

/// What a SQLSTATE means for the statement's work.
#[must_use]
pub fn disposition(sqlstate: &str) -> Disposition {
    use Disposition::{Row, Systemic, Transient};
    match sqlstate {
        // The statement was longer than a limit that the operator set, or a lock was held too long: try again.
        "57014" | "55P03" | "25P03" | "25P04" => Transient,
        // The server is going down, has crashed, or is coming up.
        "57P01" | "57P02" | "57P03" | "57P05" => Transient,
        // The object is in use (a slot whose last reader is dead, which the server has not noticed yet).
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

/// The role has not the right to do something.
pub const NOT_PERMITTED: &str = "42501";

/// A statement was cancelled: somebody asked for it, or it was longer than a limit.
pub const QUERY_CANCELED: &str = "57014";

/// A lock was not to be had within `lock_timeout`.
pub const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Whether an error of a statement about one table is that table's: a right that lacks, a column that is gone, a lock that
/// stays. Only what concerns the whole database, or the session, is not; nor is what is one row's own.
#[must_use]
pub fn is_of_its_table(sqlstate: &str) -> bool {
    match sqlstate {
        _ if disposition(sqlstate) == Disposition::Row => false,
        // A lock was held too long.
        "55P03" => true,
        // Connection, transaction (a read-only one too), login, database, serialisation, resources, the server's end, files.
        _ => !matches!(
            sqlstate.get(..2),
            None | Some("08" | "25" | "28" | "3D" | "40" | "53" | "57" | "58" | "F0")
        ),
    }
}

/// Whether the server can't build the text of a row, as it would be longer than a gigabyte.
#[must_use]
pub fn is_row_too_large(sqlstate: &str, message: &str) -> bool {
    const TOO_LARGE: [&str; 3] = [
        "invalid memory alloc request size",
        "string buffer exceeds maximum allowed length",
        "out of memory",
    ];
    matches!(sqlstate, "XX000" | "54000") && TOO_LARGE.iter().any(|text| message.starts_with(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_the_session_or_the_database_hold_more_than_their_table() {
        for sqlstate in [
            "42501", "42P01", "42703", "428C9", "42704", "0A000", "55P03", "55000", "XX000", "XX001", "3F000",
        ] {
            assert!(is_of_its_table(sqlstate), "{sqlstate}");
        }
        for sqlstate in [
            "08006", "25006", "40001", "53100", "57014", "57P01", "58030", "22P02", "23505", "",
        ] {
            assert!(!is_of_its_table(sqlstate), "{sqlstate}");
        }
    }

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
}
