//! `twinlog.failed_rows`: rows that the Agent DB refused, one entry a key.
//!
//! | file | |
//! |---|---|
//! | `entries` | written in the transaction of the rows: parked, folded, healed, refused again |
//! | `fingerprint` | what parked rows have in common |
//! | `discard` | given up by people |
//! | `reason` | why a row is parked |
//! | `due` | read by the daemon: which keys are to be tried again, and when |
//! | `row_values` | the values of a row whose table has no key |
//! | `show` | read by people, who may ask for another attempt |

mod discard;
mod due;
pub(in crate::agent_db) mod entries;
mod fingerprint;
pub(in crate::agent_db) mod reason;
mod row_values;
mod show;

pub use discard::Discard;
pub use due::FailedKey;
pub(in crate::agent_db) use fingerprint::Fingerprint;
pub use show::{FailedFilter, FailedRow, FailedRowDetail, RequestedRetry, RetryOutcome};
