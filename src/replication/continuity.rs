//! Decides whether the slot continues where the checkpoint ends: the one place that compares the stored checkpoint with
//! what the Site DB says now.
//!
//! After a slot was recreated, a server was restored from a backup, or a failover lost transactions, rows can be
//! missing while everything looks healthy. So a start must prove that the log is the same one and contains everything
//! after the checkpoint. Without this proof the state is `GAP`, with the reason, until a full resync is done (pitfalls
//! P3, P4).

use std::fmt;

use crate::agent_db::{SourceIdentity, StoredCheckpoint};
use crate::lsn::Lsn;
use crate::source::SlotFacts;

/// What the Site DB says about its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceLog {
    /// The cluster, timeline, database, slot and publication that are read now.
    pub(super) identity: SourceIdentity,
    /// The end of its WAL now.
    pub(super) wal_end: Lsn,
    /// Each earlier timeline and where it ended, oldest first; empty if the timeline is the checkpoint's.
    pub(super) history: Vec<(u32, Lsn)>,
}

/// Why rows may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GapReason {
    /// The Agent DB has a checkpoint, but the Site DB has no slot.
    SlotMissing,
    /// This daemon has dropped the slot, as it kept more than `sync.give_up_slot_at`.
    SlotGivenUp {
        /// Bytes that it kept.
        kept: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The server removed WAL that the slot needed, or invalidated the slot; with the server's reason (PostgreSQL 17
    /// and later).
    SlotLost(Option<String>),
    /// The slot's position is past the checkpoint: it was recreated or moved.
    SlotAhead {
        /// The slot's `confirmed_flush_lsn`.
        slot: Lsn,
        /// The `end_lsn` of the Agent DB's checkpoint.
        checkpoint: Lsn,
    },
    /// `site.url` names another cluster than before.
    OtherSystem {
        /// What the slot's rows in the Agent DB are of.
        first: String,
        /// What is read now.
        now: String,
    },
    /// The slot belongs to another database, or another publication is read, than before.
    OtherSource {
        /// What the slot is of.
        first: String,
        /// What is read now.
        now: String,
    },
    /// The database was dropped, and another one has its name: a slot goes with its database.
    DatabaseReplaced {
        /// Its name.
        database: String,
    },
    /// A failover happened at a position before the checkpoint: what was applied past that position is not part of the
    /// Site DB's history any more.
    TimelineDiverged {
        /// Where the old timeline ended; 0/0 if unknown.
        switched_at: Lsn,
        /// The `end_lsn` of the Agent DB's checkpoint.
        checkpoint: Lsn,
    },
    /// The log ends before the checkpoint: the server was restored from a backup.
    LogBehind {
        /// The end of the Site DB's WAL.
        wal_end: Lsn,
        /// The `end_lsn` of the Agent DB's checkpoint.
        checkpoint: Lsn,
    },
}

impl GapReason {
    /// Whether a new slot and a full resync may make up for it unasked: only if it is known how the slot was lost, and that the
    /// Site DB is still the same database. A slot that somebody dropped may have gone with its database, whose rows were then
    /// restored from an older dump: a resync would delete the newer ones, which only the Agent DB still has.
    #[must_use]
    pub(super) fn may_be_made_up_for(&self, stored: Option<&StoredCheckpoint>, now: &SourceIdentity) -> bool {
        let was = stored.and_then(|stored| stored.checkpoint.identity.database_oid);
        matches!(self, Self::SlotLost(_) | Self::SlotGivenUp { .. }) && was.is_some() && was == now.database_oid
    }

    /// Whether the gap must be stored in the Agent DB, because a later start could find nothing wrong although rows are
    /// missing: for example, the WAL of a server restored from a backup grows past the checkpoint again. A wrong
    /// `site.url`, however, leaves nothing behind once it is corrected.
    #[must_use]
    pub(super) const fn must_be_stored(&self) -> bool {
        !matches!(self, Self::OtherSystem { .. } | Self::OtherSource { .. })
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlotMissing => write!(f, "the replication slot does not exist any more"),
            Self::SlotGivenUp { kept, limit } => write!(
                f,
                "the replication slot was given up, since it kept {} MB of the Site DB's log, more than sync.give_up_slot_at ({} MB)",
                kept >> 20,
                limit >> 20
            ),
            Self::SlotLost(None) => write!(
                f,
                "the Site DB removed WAL that the slot needed (raise max_slot_wal_keep_size)"
            ),
            Self::SlotLost(Some(why)) => {
                write!(f, "the Site DB invalidated the slot: {why}")?;
                // <https://www.postgresql.org/docs/18/view-pg-replication-slots.html>; the other reasons occur on a
                // standby only.
                match why.as_str() {
                    "wal_removed" => write!(f, " (raise max_slot_wal_keep_size)"),
                    "idle_timeout" => write!(f, " (raise idle_replication_slot_timeout)"),
                    _ => Ok(()),
                }
            }
            Self::SlotAhead { slot, checkpoint } => write!(
                f,
                "the slot is at {slot}, past the checkpoint {checkpoint}: it was recreated or moved"
            ),
            Self::OtherSystem { first, now } => write!(
                f,
                "the Site DB is another cluster than the one that was synchronised: the Agent DB has the rows of {first}, and \
                 site.url names {now}"
            ),
            Self::OtherSource { first, now } => write!(
                f,
                "the slot belongs to another database or publication than before: it is of {first}, and now {now} is read"
            ),
            Self::DatabaseReplaced { database } => write!(
                f,
                "database {database} of the Site DB is another one than before, under the same name: it was dropped and restored, or \
                 renamed; a resync deletes the rows that it does not have"
            ),
            Self::TimelineDiverged {
                switched_at,
                checkpoint,
            } => write!(
                f,
                "the Site DB failed over at {switched_at}, before the checkpoint {checkpoint}: it may have lost transactions"
            ),
            Self::LogBehind { wal_end, checkpoint } => write!(
                f,
                "the Site DB's log ends at {wal_end}, before the checkpoint {checkpoint}: it was restored from a backup"
            ),
        }
    }
}

/// How to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was ever synchronised and there is no slot: create one.
    Create,
    /// Nothing was ever synchronised, but the slot exists (the daemon was killed after it had created the slot): begin
    /// at the slot's position.
    Adopt(Lsn),
    /// Continue after this checkpoint.
    Resume(Lsn),
    /// Rows may be missing.
    Gap(GapReason),
    /// The slot has this other output plugin: it belongs to another tool.
    WrongPlugin(String),
}

/// Decides how to start, from the slot, the stored checkpoint and the Site DB's log. Pure.
#[must_use]
pub(super) fn judge(slot: Option<&SlotFacts>, stored: Option<&StoredCheckpoint>, source: &SourceLog) -> Verdict {
    if let Some(slot) = slot
        && slot.plugin != "pgoutput"
    {
        return Verdict::WrongPlugin(slot.plugin.clone());
    }
    match stored {
        None => first_start(slot, &source.identity),
        Some(stored) => match gap_in_log(stored, source).or_else(|| gap_at_slot(slot, stored, source)) {
            Some(reason) => Verdict::Gap(reason),
            None => Verdict::Resume(stored.checkpoint.end_lsn),
        },
    }
}

/// How to start without a checkpoint.
fn first_start(slot: Option<&SlotFacts>, identity: &SourceIdentity) -> Verdict {
    match slot {
        Some(slot) if slot.database != identity.database => Verdict::Gap(slot_of_other(slot, identity)),
        Some(SlotFacts {
            wal_status: Some(status),
            invalidation,
            ..
        }) if status == "lost" => Verdict::Gap(GapReason::SlotLost(invalidation.clone())),
        Some(SlotFacts {
            confirmed_flush: Some(position),
            ..
        }) => Verdict::Adopt(*position),
        Some(_) | None => Verdict::Create,
    }
}

/// A gap because something else is read than before, so that no position can be compared. Pure.
#[must_use]
pub(super) fn other_source(was: &SourceIdentity, is: &SourceIdentity) -> Option<GapReason> {
    let (first, now) = (described(was), described(is));
    if was.system_identifier != is.system_identifier {
        Some(GapReason::OtherSystem { first, now })
    } else if was.database != is.database || was.publication != is.publication {
        Some(GapReason::OtherSource { first, now })
    } else {
        None
    }
}

/// What is read, in words that tell it from everything else.
fn described(identity: &SourceIdentity) -> String {
    let SourceIdentity {
        system_identifier,
        database,
        publication,
        ..
    } = identity;
    format!(
        "publication {publication} of database {database} of the server with the system identifier {system_identifier}"
    )
}

fn slot_of_other(slot: &SlotFacts, is: &SourceIdentity) -> GapReason {
    GapReason::OtherSource {
        first: format!("database {}", slot.database),
        now: described(is),
    }
}

/// A gap because the Site DB's log is not the checkpoint's log, or ends before the checkpoint.
fn gap_in_log(stored: &StoredCheckpoint, source: &SourceLog) -> Option<GapReason> {
    let (was, is) = (&stored.checkpoint.identity, &source.identity);
    let checkpoint = stored.checkpoint.end_lsn;
    if let Some(other) = other_source(was, is) {
        return Some(other);
    }
    if let (Some(before), Some(now)) = (was.database_oid, is.database_oid)
        && before != now
    {
        return Some(GapReason::DatabaseReplaced {
            database: is.database.clone(),
        });
    }
    if was.timeline != is.timeline {
        // Every switch between then and now must lie at or past the checkpoint.
        let switched_at = source
            .history
            .iter()
            .filter(|(timeline, _)| *timeline >= was.timeline)
            .map(|&(_, at)| at)
            .min();
        if switched_at.is_none_or(|at| at < checkpoint) {
            return Some(GapReason::TimelineDiverged {
                switched_at: switched_at.unwrap_or(Lsn::INVALID),
                checkpoint,
            });
        }
    }
    (source.wal_end < checkpoint).then_some(GapReason::LogBehind {
        wal_end: source.wal_end,
        checkpoint,
    })
}

/// A gap because the slot cannot continue where the checkpoint ends.
fn gap_at_slot(slot: Option<&SlotFacts>, stored: &StoredCheckpoint, source: &SourceLog) -> Option<GapReason> {
    let checkpoint = stored.checkpoint.end_lsn;
    let Some(slot) = slot else {
        return Some(GapReason::SlotMissing);
    };
    if slot.database != source.identity.database {
        return Some(slot_of_other(slot, &source.identity));
    }
    if slot.wal_status.as_deref() == Some("lost") || slot.invalidation.is_some() {
        return Some(GapReason::SlotLost(slot.invalidation.clone()));
    }
    match slot.confirmed_flush {
        Some(position) if position > checkpoint => Some(GapReason::SlotAhead {
            slot: position,
            checkpoint,
        }),
        Some(_) => None,
        None => Some(GapReason::SlotMissing),
    }
}

/// Reads a timeline history file: which timeline ended where.
///
/// Source: <https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-TIMELINE-HISTORY>.
#[must_use]
pub(super) fn parse_history(content: &str) -> Vec<(u32, Lsn)> {
    content
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests;
