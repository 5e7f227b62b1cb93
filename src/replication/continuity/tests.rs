//! What is judged at a start, case by case.

use time::OffsetDateTime;

use super::*;
use crate::agent_db::Checkpoint;

fn identity() -> SourceIdentity {
    SourceIdentity {
        system_identifier: "7".into(),
        timeline: 1,
        database: "site".into(),
        database_oid: Some(5),
        slot: "twinlog".into(),
        publication: "twinlog".into(),
    }
}

fn source() -> SourceLog {
    SourceLog {
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
fn everything_that_could_hide_missing_rows_is_a_gap() {
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

    let change = |change: fn(&mut SourceLog)| {
        let mut source = source();
        change(&mut source);
        judge(Some(&slot(60)), Some(&stored(100)), &source)
    };
    let said = |verdict: Verdict| match verdict {
        Verdict::Gap(reason) if !reason.must_be_stored() => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let first = "publication twinlog of database site of the server with the system identifier 7";
    for (verdict, now) in [
        (
            change(|source| source.identity.system_identifier = "8".into()),
            "identifier 8",
        ),
        (
            change(|source| source.identity.database = "other".into()),
            "database other",
        ),
        (
            change(|source| source.identity.publication = "other".into()),
            "publication other",
        ),
    ] {
        let said = said(verdict);
        assert!(said.contains(first) && said.contains(now), "{said}");
    }
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
fn only_a_known_loss_of_the_slot_of_the_same_database_is_made_up_for_unasked() {
    let lost = GapReason::SlotLost(None);
    let given_up = GapReason::SlotGivenUp { kept: 2, limit: 1 };
    let before = stored(100);
    for reason in [&lost, &given_up] {
        assert!(reason.may_be_made_up_for(Some(&before), &identity()));
        for oid in [None, Some(6)] {
            let now = SourceIdentity {
                database_oid: oid,
                ..identity()
            };
            assert!(!reason.may_be_made_up_for(Some(&before), &now));
        }
        let mut unknown = stored(100);
        unknown.checkpoint.identity.database_oid = None;
        assert!(!reason.may_be_made_up_for(Some(&unknown), &identity()));
        assert!(!reason.may_be_made_up_for(None, &identity()));
    }
    assert!(!GapReason::SlotMissing.may_be_made_up_for(Some(&before), &identity()));

    let mut other = source();
    other.identity.database_oid = Some(6);
    for slot in [None, Some(&slot(60))] {
        let reason = GapReason::DatabaseReplaced {
            database: "site".into(),
        };
        assert_eq!(judge(slot, Some(&before), &other), Verdict::Gap(reason));
    }
}

#[test]
fn a_restore_is_stored_as_a_gap_and_a_wrong_url_is_not() {
    let (wal_end, checkpoint) = (Lsn(1), Lsn(2));
    let restored = GapReason::LogBehind { wal_end, checkpoint };
    assert!(restored.must_be_stored() && GapReason::SlotMissing.must_be_stored());
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
