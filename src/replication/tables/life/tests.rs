//! Each state with each event as a table, and a property: no sequence of events reaches an illegal state.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::change::{HoldCause, Key};
use TableState::{Copying, Held, New, Resyncing, Streaming};

const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn table() -> TableName {
    TableName::new("public", "t")
}

fn key(text: &'static str) -> Option<Key> {
    Some(Key([Bytes::from_static(text.as_bytes())].into_iter().collect()))
}

fn start() -> TableEvent {
    TableEvent::CopyStarted {
        at: AT,
        estimated: Some(9),
    }
}

fn merged(step: CopyStep) -> TableEvent {
    TableEvent::ChunkMerged {
        step,
        at: AT,
        lsn: Lsn(7),
    }
}

fn done(rows: u64) -> TableEvent {
    merged(CopyStep::Chunk {
        rows,
        last_key: key("k"),
    })
}

fn finish() -> TableEvent {
    merged(CopyStep::Finished { rows: 1 })
}

fn resync(condition: Option<&str>) -> TableEvent {
    TableEvent::ResyncAsked {
        command: 5,
        condition: condition.map(str::to_owned),
    }
}

fn held() -> TableEvent {
    TableEvent::Held(Hold::new(HoldCause::Refused, "why"))
}

const ID: &str = r#"["id"]"#;
const CODE: &str = r#"["code"]"#;
const ROWS: &str = r#"{"rows":["id","code"]}"#;

fn chosen(key: &str, parked: bool) -> TableEvent {
    TableEvent::KeyChosen {
        key: key.to_owned(),
        published: PublishedChanges::All,
        notes: None,
        parked,
    }
}

fn gap() -> TableEvent {
    TableEvent::GapAccepted { command: 6 }
}

/// The record after these events, all of which have to be taken.
fn after(events: Vec<TableEvent>) -> Option<TableRecord> {
    events
        .into_iter()
        .fold(None, |before, event| next(&table(), before.as_ref(), event).unwrap())
}

fn new() -> Option<TableRecord> {
    after(vec![TableEvent::SeenFirst])
}

fn copying() -> Option<TableRecord> {
    after(vec![TableEvent::SeenFirst, start(), done(2)])
}

fn streaming() -> Option<TableRecord> {
    after(vec![TableEvent::SeenFirst, start(), done(2), finish()])
}

fn resyncing(condition: Option<&str>) -> Option<TableRecord> {
    after(vec![
        TableEvent::SeenFirst,
        start(),
        finish(),
        resync(condition),
        start(),
        done(2),
    ])
}

fn held_copied() -> Option<TableRecord> {
    after(vec![TableEvent::SeenFirst, start(), finish(), held()])
}

fn held_new() -> Option<TableRecord> {
    after(vec![TableEvent::SeenFirst, held()])
}

#[test]
fn each_state_takes_its_events_and_refuses_the_others() {
    let (lost, shape) = (TableEvent::CheckpointLost, TableEvent::ShapeOutdated);
    let (left, released, given_up) = (
        TableEvent::LeftPublication,
        TableEvent::Released,
        TableEvent::CopyGivenUp,
    );
    let waits = || TableEvent::CopyWaits {
        reason: Some("why".to_owned()),
    };
    let phase = || merged(CopyStep::PhaseFinished { rows: 1 });
    let none = None::<TableRecord>;
    // What the state becomes: Some(None) is forgotten, None is refused.
    for (before, event, expected) in [
        (none.clone(), TableEvent::SeenFirst, Some(Some(New))),
        (none.clone(), gap(), Some(Some(New))),
        (none.clone(), start(), None),
        (none, left.clone(), None),
        (new(), TableEvent::SeenFirst, None),
        (new(), left.clone(), Some(None)),
        (new(), start(), Some(Some(Copying))),
        (new(), done(1), None),
        (new(), finish(), None),
        (new(), resync(None), None),
        (new(), waits(), Some(Some(New))),
        (new(), lost.clone(), Some(Some(New))),
        (new(), shape.clone(), Some(Some(New))),
        (new(), gap(), Some(Some(New))),
        (new(), held(), Some(Some(Held))),
        (new(), released.clone(), None),
        (copying(), start(), Some(Some(Copying))),
        (copying(), done(1), Some(Some(Copying))),
        (copying(), phase(), Some(Some(Copying))),
        (copying(), finish(), Some(Some(Streaming))),
        (copying(), resync(None), None),
        (copying(), given_up.clone(), None),
        (copying(), lost.clone(), Some(Some(New))),
        (copying(), gap(), Some(Some(New))),
        (copying(), held(), Some(Some(Held))),
        (streaming(), start(), None),
        (streaming(), done(1), None),
        (streaming(), phase(), None),
        (streaming(), finish(), None),
        (streaming(), waits(), None),
        (streaming(), resync(Some("n > 0")), Some(Some(Resyncing))),
        (streaming(), lost.clone(), Some(Some(Resyncing))),
        (streaming(), shape.clone(), Some(Some(New))),
        (streaming(), gap(), Some(Some(Resyncing))),
        (streaming(), held(), Some(Some(Held))),
        (streaming(), left.clone(), Some(None)),
        (resyncing(None), given_up.clone(), None),
        (resyncing(Some("n > 0")), given_up, Some(Some(Streaming))),
        (resyncing(None), resync(None), None),
        (resyncing(None), phase(), Some(Some(Resyncing))),
        (resyncing(None), finish(), Some(Some(Streaming))),
        (resyncing(None), lost.clone(), Some(Some(Resyncing))),
        (resyncing(None), shape.clone(), Some(Some(New))),
        (resyncing(None), held(), Some(Some(Held))),
        (held_copied(), released.clone(), Some(Some(Resyncing))),
        (held_new(), released.clone(), Some(Some(New))),
        (held_copied(), start(), None),
        (held_copied(), done(1), None),
        (held_copied(), resync(None), None),
        (held_copied(), held(), Some(Some(Held))),
        (held_copied(), lost, Some(Some(Held))),
        (held_copied(), shape, Some(Some(Held))),
        (new(), TableEvent::MayDiffer, Some(Some(New))),
        (copying(), TableEvent::MayDiffer, Some(Some(New))),
        (streaming(), TableEvent::MayDiffer, Some(Some(Resyncing))),
        (resyncing(Some("n > 0")), TableEvent::MayDiffer, Some(Some(Resyncing))),
        (held_copied(), TableEvent::MayDiffer, Some(Some(Held))),
        (held_copied(), gap(), Some(Some(Held))),
        (held_copied(), left, Some(None)),
    ] {
        let result = next(&table(), before.as_ref(), event.clone());
        let became = result.ok().map(|after| after.map(|record| record.state));
        assert_eq!(became, expected, "{event:?} on {before:?}");
    }
}

#[test]
fn a_table_is_read_again_under_another_key_where_the_old_one_left_something() {
    for (before, known, now, parked, expected) in [
        (streaming(), None, ROWS, true, Streaming),
        (streaming(), Some(ID), ID, true, Streaming),
        (streaming(), Some(ID), CODE, false, Streaming),
        (streaming(), Some(ID), CODE, true, Resyncing),
        (streaming(), Some(ID), ROWS, false, Resyncing),
        (streaming(), Some(ROWS), ID, false, Resyncing),
        (resyncing(None), Some(ID), CODE, false, Resyncing),
        (copying(), Some(ID), CODE, false, New),
        (copying(), Some(ID), ID, false, Copying),
        (held_copied(), Some(ID), CODE, true, Held),
    ] {
        let before = before.map(|record| TableRecord {
            key: known.map(str::to_owned),
            ..record
        });
        let after = next(&table(), before.as_ref(), chosen(now, parked)).unwrap().unwrap();
        assert_eq!(after.state, expected, "{known:?} {now} {parked} on {before:?}");
        assert_eq!(after.key.as_deref(), Some(now));
        if after.state != before.as_ref().unwrap().state {
            assert_eq!((after.phase, after.last_key), (None, None));
        }
    }
}

#[test]
fn an_interrupted_copy_goes_on_where_it_was_and_says_why_it_waits() {
    let waits = TableEvent::CopyWaits {
        reason: Some("no right".to_owned()),
    };
    let waiting = after(vec![TableEvent::SeenFirst, start(), done(2), waits]).unwrap();
    assert_eq!((waiting.rows_copied, waiting.detail.as_deref()), (2, Some("no right")));
    let again = next(&table(), Some(&waiting), start()).unwrap().unwrap();
    assert_eq!(again, waiting, "nothing is read twice");
    let on = next(&table(), Some(&again), done(3)).unwrap().unwrap();
    assert_eq!((on.rows_copied, on.detail, on.last_key), (5, None, key("k")));
}

#[test]
fn a_new_shape_of_a_held_table_is_copied_as_a_new_one() {
    let events = [TableEvent::ShapeOutdated, TableEvent::Released];
    let record = events.into_iter().fold(held_copied(), |before, event| {
        next(&table(), before.as_ref(), event).unwrap()
    });
    assert_eq!(record.unwrap(), TableRecord::new(table()));
}

#[test]
fn a_resync_keeps_its_command_to_the_end_and_its_condition_no_longer() {
    let running = resyncing(Some("n > 0")).unwrap();
    assert_eq!(
        (running.command_id, running.condition.as_deref()),
        (Some(5), Some("n > 0"))
    );
    let finished = next(&table(), Some(&running), finish()).unwrap().unwrap();
    assert_eq!((finished.command_id, finished.condition), (Some(5), None));
    let held = next(&table(), Some(&running), held()).unwrap().unwrap();
    assert_eq!(
        (held.command_id, held.condition),
        (Some(5), None),
        "the whole table is read"
    );
}

#[test]
fn a_copy_with_a_condition_is_no_copy_of_the_whole_table() {
    let before = streaming().unwrap();
    let at = AT + std::time::Duration::from_secs(1);
    let events = [
        resync(Some("n > 0")),
        TableEvent::CopyStarted { at, estimated: None },
        TableEvent::ChunkMerged {
            step: CopyStep::Finished { rows: 1 },
            at,
            lsn: Lsn(9),
        },
    ];
    let record = events.into_iter().fold(before.clone(), |record, event| {
        next(&table(), Some(&record), event).unwrap().unwrap()
    });
    assert_eq!(record.state, Streaming);
    assert_eq!(
        (record.started_at, record.finished_at, record.copied_at_lsn),
        (before.started_at, before.finished_at, before.copied_at_lsn)
    );
}

fn event() -> impl Strategy<Value = TableEvent> {
    prop_oneof![
        4 => Just(TableEvent::SeenFirst),
        1 => Just(TableEvent::LeftPublication),
        1 => Just(TableEvent::ShapeOutdated),
        1 => Just(TableEvent::CheckpointLost),
        1 => Just(TableEvent::MayDiffer),
        1 => Just(TableEvent::KeyOutdated),
        2 => (0..3_usize, any::<bool>()).prop_map(|(key, parked)| chosen([ID, CODE, ROWS][key], parked)),
        1 => Just(gap()),
        2 => Just(resync(None)),
        2 => Just(resync(Some("n > 0"))),
        8 => Just(start()),
        8 => (0..5_u64).prop_map(done),
        4 => (0..5_u64).prop_map(|rows| merged(CopyStep::PhaseFinished { rows })),
        4 => Just(finish()),
        2 => Just(TableEvent::CopyWaits { reason: Some("why".to_owned()) }),
        1 => Just(TableEvent::CopyGivenUp),
        1 => Just(held()),
        2 => Just(TableEvent::Released),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens in whatever order: a table streams only after a whole copy, a held one has a reason, a
    /// refused event changes nothing, and a copy's progress never moves back.
    #[test]
    fn no_sequence_of_events_reaches_an_illegal_state(events in prop::collection::vec(event(), 1..64)) {
        let mut record: Option<TableRecord> = None;
        // Whether a copy was finished since nothing of the table was known to be right.
        let mut whole = false;
        for event in events {
            let Ok(after) = next(&table(), record.as_ref(), event.clone()) else { continue };
            match (&event, &after) {
                (TableEvent::ChunkMerged { step: CopyStep::Finished { .. }, .. }, _) => whole = true,
                (_, None) | (TableEvent::ShapeOutdated, _) => whole = false,
                (_, Some(after)) if after.state == New => whole = false,
                _ => {}
            }
            if let Some(after) = &after {
                let copies = matches!(after.state, Copying | Resyncing);
                prop_assert_eq!(after.was_copied(), whole);
                prop_assert!(whole || !matches!(after.state, Streaming | Resyncing));
                prop_assert!(!whole || !matches!(after.state, New | Copying));
                prop_assert!(after.state != Held || after.detail.is_some());
                prop_assert_eq!(after.state == Held, after.cause.is_some());
                prop_assert!(after.phase.is_none() || copies);
                prop_assert!(after.last_key.is_none() || after.phase.is_some());
                prop_assert!(after.condition.is_none() || after.state == Resyncing);
                prop_assert!(after.state != Copying || after.phase.is_some());
                if let Some(before) = &record
                    && before.phase.is_some() && after.phase.is_some() && after.started_at == before.started_at
                    && before.state == after.state
                {
                    prop_assert!(after.rows_copied >= before.rows_copied);
                    prop_assert!((before.phase, after.phase) != (Some(CopyPhase::Extras), Some(CopyPhase::Rows)));
                }
            }
            record = after;
        }
    }
}
