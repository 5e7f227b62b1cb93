//! Why a run ended, whether waiting helps, and what an operator can do.

use crate::agent_db::AgentError;
use crate::change::{Hold, HoldCause, TableName};
use crate::copy::CopyError;
use crate::lsn::Lsn;
use crate::postgres::diagnosis::SWAPPED_HINT;
use crate::postgres::error::explain;
use crate::postgres::sqlstate::READ_ONLY;
use crate::retry::Disposition;
use crate::source::SourceError;
use crate::wire::{ServerFault, SlotNameError, WireError};

use super::continuity::GapReason;
use super::stream_error::StreamError;
use super::tables::life::TransitionError;

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The replication connection failed.
    #[error("replication connection to the Site DB: {0}")]
    Wire(#[from] WireError),
    /// A query to the Site DB failed, or the Site DB lacks something that replication needs.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The Agent DB failed, or refused a statement for a reason that is not one row's value.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A table could not be copied, or parked rows could not be read again.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The stream broke the protocol, or lacks what applying a row needs.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The schema `twinlog` of the Agent DB could not be migrated.
    #[error(transparent)]
    Migration(#[from] crate::migrations::MigrationError),
    /// `sync.slot` is not a valid slot name.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// The slot keeps more than `sync.give_up_slot_at`: it is dropped before the next run.
    #[error("the slot keeps {} MB of the Site DB's log, more than sync.give_up_slot_at: it is given up", .kept >> 20)]
    SlotOverLimit {
        /// Bytes that it keeps.
        kept: u64,
    },
    /// Rows may be missing, and nobody has asked for a full resync yet.
    #[error("GAP: {0}; rows may be missing")]
    Gap(GapReason),
    /// The slot's lock and its rows in the Agent DB are another pipeline's, whose daemon runs. Nothing was written.
    #[error("slot {slot} is used in the Agent DB by the running daemon of another pipeline: {reason}")]
    SlotOfAnother {
        /// The value of `sync.slot`.
        slot: String,
        /// Whose it is.
        reason: String,
    },
    /// The publication did not exist when a change was made that has to be decoded now: the log can't be read past it.
    #[error(
        "publication {publication} of the Site DB did not exist when the next change in the log was made, so slot {slot} can't \
         be read past it"
    )]
    PublicationWasMissing {
        /// The value of `sync.slot`.
        slot: String,
        /// The value of `sync.publication`.
        publication: String,
        /// The server's error.
        source: WireError,
    },
    /// The server can't decode its own log past a change. Each attempt begins at the same position and ends there.
    #[error(
        "the Site DB can't decode its log past {after}: Postgres finds no table for a change there, mostly because DDL (DROP, \
         TRUNCATE, ALTER, SET UNLOGGED) ran beside it"
    )]
    CannotDecode {
        /// The value of `sync.slot`.
        slot: String,
        /// The last position that is durable in the Agent DB.
        after: Lsn,
        /// The server's error.
        source: WireError,
    },
    /// `site.url` and `agent.url` are exchanged. Nothing was written.
    #[error("site.url and agent.url look swapped: the database of site.url is the one that a daemon has written")]
    UrlsSwapped,
    /// The slot was created by another tool, with another output plugin.
    #[error("slot {slot} belongs to the output plugin {plugin}, not pgoutput")]
    WrongPlugin {
        /// The value of `sync.slot`.
        slot: String,
        /// Its output plugin; `physical` if it has none.
        plugin: String,
    },
    /// The Site DB's published tables have changed since the start; the next start reads them.
    #[error("table {0} of the Site DB was added, left the publication or changed: restarting the stream with it")]
    TableChanged(TableName),
    /// The last resort against a loop: the table ended two runs in a row as changed, and nothing was written between them.
    #[error("table {0} of the Site DB is found changed at every start, although nothing was written meanwhile")]
    TableKeepsChanging(TableName),
    /// The slot belongs to another database of the same cluster.
    #[error(
        "slot {slot} belongs to database {database:?} of the Site DB's cluster, but site.url names another database"
    )]
    SlotElsewhere {
        /// The value of `sync.slot`.
        slot: String,
        /// The database that the slot decodes.
        database: String,
    },
    /// At the start, a table's stored state did not fit what happened to the table.
    #[error(transparent)]
    Table(#[from] TransitionError),
    /// The server can't send a row of a transaction as text. The next run passes over what the log has up to that
    /// transaction, and has its tables read again.
    #[error(
        "the Site DB can't send a row of its log, whose text has more than 1 GB (a bytea takes twice its size): its transaction \
         is passed over, and its tables are read again"
    )]
    RowTooLarge {
        /// The position of the transaction's commit record.
        commit: Lsn,
        /// The server's error.
        source: WireError,
    },
    /// A transaction with a row that can't be sent as text was passed over.
    #[error("a transaction with a row that is too large to be sent was passed over: its tables are read again")]
    PassedOver,
    /// The server can't send a row in any form.
    #[error("the Site DB can't send a row of its log, which has more than 1 GB in any form")]
    NeverSent(#[source] WireError),
    /// The server ended the stream, as it does when it shuts down.
    #[error("the Site DB ended the stream")]
    StreamEnded,
    /// The task that writes to the Agent DB ended without an error of its own.
    #[error("the task that writes to the Agent DB ended unexpectedly")]
    ApplyEnded,
    /// A task that copies a table ended without an error of its own.
    #[error("a task that copies a table ended unexpectedly")]
    CopyEnded,
}

impl SyncError {
    /// Whether to reconnect, or to hold until an operator has repaired the cause.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Wire(error) => match error.fault() {
                // Usually an earlier daemon's dead connection, which the server has not noticed yet.
                Some(ServerFault::SlotActive) => Disposition::Transient,
                _ => error.disposition(),
            },
            Self::Source(error) => error.disposition(),
            Self::Agent(error) => error.disposition(),
            Self::Copy(error) => error.disposition(),
            Self::Migration(error) => error.disposition(),
            // The next start reads the new list of tables.
            Self::TableChanged(_) => Disposition::Transient,
            Self::Stream(_)
            | Self::Gap(_)
            | Self::PublicationWasMissing { .. }
            | Self::CannotDecode { .. }
            | Self::SlotOfAnother { .. }
            | Self::WrongPlugin { .. }
            | Self::UrlsSwapped
            | Self::TableKeepsChanging(_)
            | Self::SlotElsewhere { .. }
            | Self::SlotName(_)
            | Self::NeverSent(_)
            | Self::Table(_) => Disposition::Systemic,
            Self::RowTooLarge { .. }
            | Self::SlotOverLimit { .. }
            | Self::PassedOver
            | Self::StreamEnded
            | Self::ApplyEnded
            | Self::CopyEnded => Disposition::Transient,
        }
    }

    /// Whether the Agent DB takes no writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Agent(AgentError::Refused { refusal, .. } | AgentError::TableRefused { refusal, .. }) => {
                refusal.sqlstate == READ_ONLY
            }
            Self::Migration(error) => error.is_read_only(),
            _ => false,
        }
    }

    /// The table whose own fault this is: it can be held, and the other tables go on.
    #[must_use]
    pub fn table_fault(&self) -> Option<&TableName> {
        match self {
            Self::Source(error) => error.table_fault(),
            Self::Agent(error) => error.table_fault(),
            Self::Copy(error) => error.table_fault(),
            Self::Stream(error) => error.table_fault(),
            Self::TableKeepsChanging(table) => Some(table),
            Self::Wire(_)
            | Self::Migration(_)
            | Self::SlotName(_)
            | Self::SlotOverLimit { .. }
            | Self::Gap(_)
            | Self::PublicationWasMissing { .. }
            | Self::CannotDecode { .. }
            | Self::SlotOfAnother { .. }
            | Self::WrongPlugin { .. }
            | Self::UrlsSwapped
            | Self::TableChanged(_)
            | Self::SlotElsewhere { .. }
            | Self::Table(_)
            | Self::RowTooLarge { .. }
            | Self::PassedOver
            | Self::NeverSent(_)
            | Self::StreamEnded
            | Self::ApplyEnded
            | Self::CopyEnded => None,
        }
    }

    /// The table whose own fault this is, and why it is held.
    #[must_use]
    pub fn hold(&self) -> Option<(TableName, Hold)> {
        let hold = match self {
            Self::Source(error) => error.hold(),
            Self::Agent(error) => error.hold(),
            Self::Copy(error) => return error.hold(),
            Self::Stream(error) => error.hold(),
            _ => Hold::new(HoldCause::KeepsChanging, self.explain()),
        };
        Some((self.table_fault()?.clone(), hold))
    }

    /// The remedy: the statement, setting or command to use.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Wire(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::Agent(error) => error.hint(),
            Self::Copy(error) => error.hint(),
            Self::Stream(error) => error.hint(),
            Self::Migration(error) => error.hint(),
            Self::Gap(_) => Some(
                "check that site.url names the right database, then run: twinlog resync --all (it makes the Agent DB equal to the \
                 Site DB as it is now, and deletes rows that only the Agent DB has)"
                    .to_owned(),
            ),
            Self::PublicationWasMissing { slot, .. } => Some(format!(
                "the publication was dropped for a while, or created after the slot: on the Site DB: SELECT \
                 pg_drop_replication_slot('{slot}'); then run: twinlog resync --all (a new slot is created and every table is read \
                 again)"
            )),
            Self::CannotDecode { slot, .. } => Some(format!(
                "it is tried again every 2 s; if it stays (newer minor versions of Postgres have fewer of these faults), give up \
                 the slot, on the Site DB: SELECT pg_drop_replication_slot('{slot}'); then run: twinlog resync --all (a new slot is \
                 created and every table is read again)"
            )),
            Self::SlotOfAnother { slot, .. } => Some(format!(
                "give this pipeline a slot of its own: sync.slot = '{slot}_2'; or, if its Site DB takes the other one's place, stop the \
                 other daemon, and run: twinlog resync --all"
            )),
            Self::WrongPlugin { slot, .. } => Some(format!(
                "choose another sync.slot, or on the Site DB: SELECT pg_drop_replication_slot('{slot}');"
            )),
            Self::UrlsSwapped => Some(SWAPPED_HINT.to_owned()),
            Self::SlotElsewhere { database, .. } => Some(format!(
                "correct site.url (its database is not {database}), or choose another sync.slot"
            )),
            Self::NeverSent(_) => Some(
                "give the log up to here: on the Site DB: SELECT pg_replication_slot_advance('<sync.slot>', \
                 pg_current_wal_lsn()); then run: twinlog resync --all (every table is read again)"
                    .to_owned(),
            ),
            Self::TableChanged(_)
            | Self::TableKeepsChanging(_)
            | Self::SlotName(_)
            | Self::SlotOverLimit { .. }
            | Self::Table(_)
            | Self::RowTooLarge { .. }
            | Self::PassedOver
            | Self::StreamEnded
            | Self::ApplyEnded
            | Self::CopyEnded => None,
        }
    }

    /// The error with its causes and its hint, in one line for logs and health.
    #[must_use]
    pub fn explain(&self) -> String {
        explain(self, self.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_can_not_be_decoded_is_told_with_the_steps() {
        let error = SyncError::CannotDecode {
            slot: "twinlog".to_owned(),
            after: Lsn(0x16_B374_D848),
            source: WireError::Closed,
        };
        let told = error.explain();
        for words in [
            "16/B374D848",
            "SELECT pg_drop_replication_slot('twinlog');",
            "twinlog resync --all",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(error.disposition(), Disposition::Systemic);
    }
}
