//! Whether the slot can be trusted: the one place that compares a stored checkpoint with what the Site DB says now.
//!
//! A slot that was recreated, a server that was restored from a backup, a failover that lost transactions: each could
//! hide a hole while everything looks healthy. So a start needs proof that the log is the same and goes on where the
//! checkpoint ends; without it the state is `GAP`, by name, with the reason, until a full resync has shown that nothing is
//! missing (pitfalls P3, P4).

use std::fmt;

use crate::agent_db::{SourceIdentity, StoredCheckpoint};
use crate::lsn::Lsn;
use crate::source::SlotFacts;

/// What the Site DB says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceFacts {
    /// Whose log it is.
    pub(super) identity: SourceIdentity,
    /// The end of its log.
    pub(super) wal_end: Lsn,
    /// Where each earlier timeline ended, oldest first; empty where the history was not asked for.
    pub(super) history: Vec<(u32, Lsn)>,
}

/// Why rows may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GapReason {
    /// The Agent DB has a checkpoint, the Site DB no slot.
    SlotMissing,
    /// The server removed log that the slot needed, or invalidated the slot for the reason that it names (17 and later).
    SlotLost(Option<String>),
    /// The slot stands past the checkpoint: it was recreated or moved.
    SlotAhead {
        /// The position that the server believes to be acknowledged.
        slot: Lsn,
        /// The position that the Agent DB has reached.
        checkpoint: Lsn,
    },
    /// `site.url` leads to another cluster than before.
    OtherSystem,
    /// The slot now serves another database or publication.
    OtherSource,
    /// A failover went back behind the checkpoint: what we hold past that point is not in the Site DB's history.
    TimelineDiverged {
        /// Where the old timeline ended; 0/0 where its end is not known.
        switched_at: Lsn,
        /// The position that the Agent DB has reached.
        checkpoint: Lsn,
    },
    /// The log ends before the checkpoint: the server was restored from a backup.
    LogBehind {
        /// Where it ends.
        wal_end: Lsn,
        /// The position that the Agent DB has reached.
        checkpoint: Lsn,
    },
}

impl GapReason {
    /// Whether the hole can be there although a later look finds nothing wrong: a server that was restored from a backup
    /// writes on, and its log passes the checkpoint again. Such a reason is kept. What only says that we look at the wrong
    /// place is gone with the look at the right one.
    #[must_use]
    pub(super) const fn outlives_its_cause(&self) -> bool {
        !matches!(self, Self::OtherSystem | Self::OtherSource)
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlotMissing => write!(f, "the replication slot does not exist any more"),
            Self::SlotLost(None) => write!(
                f,
                "the Site DB removed log that the slot needed (raise max_slot_wal_keep_size)"
            ),
            Self::SlotLost(Some(why)) => {
                write!(f, "the Site DB invalidated the slot: {why}")?;
                // <https://www.postgresql.org/docs/18/view-pg-replication-slots.html>; the others are a standby's.
                match why.as_str() {
                    "wal_removed" => write!(f, " (raise max_slot_wal_keep_size)"),
                    "idle_timeout" => write!(f, " (raise idle_replication_slot_timeout)"),
                    _ => Ok(()),
                }
            }
            Self::SlotAhead { slot, checkpoint } => write!(
                f,
                "the slot stands at {slot}, past the checkpoint {checkpoint}: it was recreated or moved"
            ),
            Self::OtherSystem => write!(f, "the Site DB is another cluster than the one that was synchronised"),
            Self::OtherSource => write!(f, "the slot belongs to another database or publication than before"),
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
    /// Nothing was ever synchronised, and the slot is there (we were killed between the two): begin at its position.
    Adopt(Lsn),
    /// Go on behind the checkpoint.
    Resume(Lsn),
    /// Rows may be missing.
    Gap(GapReason),
    /// The slot is not one of ours.
    WrongPlugin(String),
}

/// Decides how to start, from what the Site DB says of the slot and of itself, and what the Agent DB remembers. Pure.
#[must_use]
pub(super) fn judge(slot: Option<&SlotFacts>, stored: Option<&StoredCheckpoint>, source: &SourceFacts) -> Verdict {
    if let Some(slot) = slot
        && slot.plugin != "pgoutput"
    {
        return Verdict::WrongPlugin(slot.plugin.clone());
    }
    match stored {
        None => first_start(slot, &source.identity),
        Some(stored) => match hole_in_the_log(stored, source).or_else(|| hole_at_the_slot(slot, stored, source)) {
            Some(reason) => Verdict::Gap(reason),
            None => Verdict::Resume(stored.checkpoint.end_lsn),
        },
    }
}

/// Nothing was ever synchronised.
fn first_start(slot: Option<&SlotFacts>, identity: &SourceIdentity) -> Verdict {
    match slot {
        Some(slot) if slot.database != identity.database => Verdict::Gap(GapReason::OtherSource),
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

/// Whether the Site DB's log is another one than the checkpoint's, or does not hold the checkpoint.
fn hole_in_the_log(stored: &StoredCheckpoint, source: &SourceFacts) -> Option<GapReason> {
    let (was, is) = (&stored.checkpoint.identity, &source.identity);
    let checkpoint = stored.checkpoint.end_lsn;
    if was.system_identifier != is.system_identifier {
        return Some(GapReason::OtherSystem);
    }
    if was.database != is.database || was.publication != is.publication {
        return Some(GapReason::OtherSource);
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

/// Whether the slot can't go on where the checkpoint ends.
fn hole_at_the_slot(slot: Option<&SlotFacts>, stored: &StoredCheckpoint, source: &SourceFacts) -> Option<GapReason> {
    let checkpoint = stored.checkpoint.end_lsn;
    let Some(slot) = slot else {
        return Some(GapReason::SlotMissing);
    };
    if slot.database != source.identity.database {
        return Some(GapReason::OtherSource);
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
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::agent_db::Checkpoint;

    fn identity() -> SourceIdentity {
        SourceIdentity {
            system_identifier: "7".into(),
            timeline: 1,
            database: "site".into(),
            slot: "twinlog".into(),
            publication: "twinlog".into(),
        }
    }

    fn source() -> SourceFacts {
        SourceFacts {
            identity: identity(),
            wal_end: Lsn(500),
            history: Vec::new(),
        }
    }

    fn slot(confirmed: u64) -> SlotFacts {
        SlotFacts {
            plugin: "pgoutput".into(),
            database: "site".into(),
            confirmed_flush: Some(Lsn(confirmed)),
            wal_status: Some("reserved".into()),
            invalidation: None,
        }
    }

    fn stored(end: u64) -> StoredCheckpoint {
        StoredCheckpoint {
            checkpoint: Checkpoint {
                identity: identity(),
                end_lsn: Lsn(end),
                source_commit_at: None,
            },
            gap: None,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn is_gap(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Gap(_))
    }

    #[test]
    fn the_first_start_creates_or_adopts() {
        assert_eq!(judge(None, None, &source()), Verdict::Create);
        assert_eq!(judge(Some(&slot(40)), None, &source()), Verdict::Adopt(Lsn(40)));
    }

    #[test]
    fn a_slot_at_or_behind_the_checkpoint_is_resumed() {
        assert_eq!(
            judge(Some(&slot(100)), Some(&stored(100)), &source()),
            Verdict::Resume(Lsn(100))
        );
        assert_eq!(
            judge(Some(&slot(60)), Some(&stored(100)), &source()),
            Verdict::Resume(Lsn(100))
        );
    }

    #[test]
    fn everything_that_could_hide_a_hole_is_a_gap() {
        let ahead = judge(Some(&slot(101)), Some(&stored(100)), &source());
        assert_eq!(
            ahead,
            Verdict::Gap(GapReason::SlotAhead {
                slot: Lsn(101),
                checkpoint: Lsn(100)
            })
        );
        assert_eq!(
            judge(None, Some(&stored(100)), &source()),
            Verdict::Gap(GapReason::SlotMissing)
        );
        let lost = SlotFacts {
            wal_status: Some("lost".into()),
            ..slot(60)
        };
        assert_eq!(
            judge(Some(&lost), Some(&stored(100)), &source()),
            Verdict::Gap(GapReason::SlotLost(None))
        );
        let invalidated = SlotFacts {
            invalidation: Some("idle_timeout".into()),
            ..slot(60)
        };
        assert!(is_gap(&judge(Some(&invalidated), Some(&stored(100)), &source())));

        let change = |change: fn(&mut SourceFacts)| {
            let mut source = source();
            change(&mut source);
            judge(Some(&slot(60)), Some(&stored(100)), &source)
        };
        assert_eq!(
            change(|source| source.identity.system_identifier = "8".into()),
            Verdict::Gap(GapReason::OtherSystem)
        );
        assert_eq!(
            change(|source| source.identity.database = "other".into()),
            Verdict::Gap(GapReason::OtherSource)
        );
        assert_eq!(
            change(|source| source.identity.publication = "other".into()),
            Verdict::Gap(GapReason::OtherSource)
        );
        assert!(is_gap(&change(|source| source.wal_end = Lsn(99))));
        assert!(
            is_gap(&change(|source| source.identity.timeline = 2)),
            "no history: no proof"
        );
        assert!(is_gap(&change(|source| {
            source.identity.timeline = 2;
            source.history = vec![(1, Lsn(99))];
        })));
    }

    #[test]
    fn looking_at_the_wrong_place_leaves_no_mark_and_a_restore_does() {
        let restored = GapReason::LogBehind {
            wal_end: Lsn(1),
            checkpoint: Lsn(2),
        };
        assert!(restored.outlives_its_cause() && GapReason::SlotMissing.outlives_its_cause());
        assert!(!GapReason::OtherSystem.outlives_its_cause() && !GapReason::OtherSource.outlives_its_cause());
    }

    #[test]
    fn a_failover_that_lost_nothing_goes_on() {
        let mut source = source();
        source.identity.timeline = 3;
        source.history = parse_history("1\t0/64\tno recovery target specified\n2\t0/80\tbecause\n");
        assert_eq!(source.history, vec![(1, Lsn(0x64)), (2, Lsn(0x80))]);
        assert_eq!(
            judge(Some(&slot(60)), Some(&stored(100)), &source),
            Verdict::Resume(Lsn(100))
        );
    }

    #[test]
    fn a_slot_of_another_plugin_is_left_alone() {
        let other = SlotFacts {
            plugin: "wal2json".into(),
            ..slot(60)
        };
        assert_eq!(
            judge(Some(&other), None, &source()),
            Verdict::WrongPlugin("wal2json".into())
        );
    }
}
