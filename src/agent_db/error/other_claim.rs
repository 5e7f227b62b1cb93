//! The claim of another pipeline on a table.

use std::fmt;

use time::OffsetDateTime;

use crate::change::TableName;

/// The claim of another pipeline on a table, or on a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherClaim {
    /// Its slot.
    pub slot: String,
    /// The cluster that it reads.
    pub system_identifier: String,
    /// The database that it reads.
    pub database: String,
    /// The table that it has claimed: the same, a partition of it, or what it is a partition of.
    pub table: TableName,
    /// When, by the Agent DB's clock.
    pub claimed_at: OffsetDateTime,
    /// Whether the other pipeline would share it.
    pub is_shared_there: bool,
    /// Whether this pipeline would share it.
    pub is_shared_here: bool,
    /// Its daemon; `None` if none has ever reported.
    pub daemon: Option<OtherDaemon>,
    /// This pipeline's `sync.tables`, extended so that they leave the table out.
    pub without: String,
}

/// The daemon of another pipeline, by its own last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherDaemon {
    /// Where it runs.
    pub hostname: String,
    /// Whether it runs.
    pub is_running: bool,
}

impl fmt::Display for OtherClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.claimed_at.to_offset(time::UtcOffset::UTC);
        write!(
            f,
            "slot {}, which reads database {} of the server with the system identifier {}, has claimed {} at {} {:02}:{:02}:{:02} UTC; ",
            self.slot,
            self.database,
            self.system_identifier,
            self.table,
            at.date(),
            at.hour(),
            at.minute(),
            at.second()
        )?;
        match &self.daemon {
            Some(daemon) if daemon.is_running => {
                write!(f, "its daemon runs on {}", daemon.hostname)
            }
            Some(daemon) => write!(f, "its daemon (last seen on {}) does not run", daemon.hostname),
            None => f.write_str("no daemon of it has reported yet"),
        }
    }
}

impl OtherClaim {
    /// What an operator can do.
    pub(super) fn hint(&self) -> String {
        let both = match (self.is_shared_here, self.is_shared_there) {
            (true, false) => "name it in sync.shared_tables there too, as here",
            (false, true) => "name it in sync.shared_tables here too, as there",
            _ => "name it in sync.shared_tables of both",
        };
        let stop = match &self.daemon {
            Some(daemon) if daemon.is_running => "stop that daemon, and ",
            _ => "",
        };
        format!(
            "leave it out here: sync.tables = {}; or, if both shall write it, {both}; or, if that pipeline is given up for good, \
             {stop}in the Agent DB: DELETE FROM twinlog.claims WHERE slot = '{}';",
            self.without,
            self.slot.replace('\'', "''")
        )
    }
}
