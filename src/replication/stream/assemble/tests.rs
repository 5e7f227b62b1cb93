//! The protocol's order, keys of old and new images, and what was durable before.

use bytes::Bytes;

use super::*;
use crate::change::{ColumnValue, RowKey};
use crate::pgoutput::{Begin, Column, Commit, Delete, Insert, ReplicaIdentity, Update};

const TABLE: RelationId = RelationId(7);

/// What relation 7 is called now.
const NOW: &str = "t";

fn assembler(resume_after: u64) -> Assembler {
    Assembler::new(Lsn(resume_after), |id| {
        (id == TABLE).then(|| TableName::new("public", NOW))
    })
}

fn relation_message(name: &str) -> RelationMessage {
    let column = |name: &str, part_of_key| Column {
        part_of_key,
        name: name.into(),
        type_oid: 25,
        type_modifier: -1,
    };
    RelationMessage {
        id: TABLE,
        table: TableName::new("public", name),
        replica_identity: ReplicaIdentity::Default,
        columns: [column("id", true), column("a", false)].into(),
    }
}

fn text(value: &str) -> ColumnValue {
    ColumnValue::Text(Bytes::from(value.to_owned()))
}

fn row(values: [ColumnValue; 2]) -> Row {
    Row(values.into())
}

fn begin(final_lsn: u64) -> Message {
    Message::Begin(Begin {
        final_lsn: Lsn(final_lsn),
        commit_time: PgTimestamp(0),
        xid: Xid(1),
    })
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Message {
    Message::Commit(Commit {
        commit_lsn: Lsn(commit_lsn),
        end_lsn: Lsn(end_lsn),
        commit_time: PgTimestamp(0),
    })
}

fn insert(id: &str) -> Message {
    Message::Insert(Insert {
        relation: TABLE,
        row: row([text(id), text("x")]),
    })
}

/// Tells the assembler of the table, as the stream does.
fn resolve(assembler: &mut Assembler) {
    let Event::Relation(message, table) = assembler.event_of(Message::Relation(relation_message("t"))).unwrap() else {
        panic!("not asked for");
    };
    let relation = Relation {
        id: TABLE,
        table,
        columns: ["id", "a"].map(Arc::from).into(),
        key: RowKey::Columns([0].into()),
    };
    assembler.resolved(message, Arc::new(relation));
}

#[test]
fn any_number_of_other_tables_is_counted_under_a_thousand_names() {
    let mut assembler = assembler(0);
    assembler.event_of(begin(100)).unwrap();
    let names: std::collections::BTreeSet<String> = (1000..201_000)
        .map(|id| {
            let message = RelationMessage {
                id: RelationId(id),
                ..relation_message(&format!("other_{id}"))
            };
            // Twice, as after a change of the table.
            for message in [message.clone(), message] {
                assembler.event_of(Message::Relation(message)).unwrap();
            }
            let insert = Message::Insert(Insert {
                relation: RelationId(id),
                row: row([text("1"), text("x")]),
            });
            match assembler.event_of(insert).unwrap() {
                Event::PassedOver(relation, PassedOver::NotSelected) => relation.table.to_string(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(names.len(), MOST_OTHERS + 1);
    assert!(names.contains("*.*") && names.contains("public.other_1000"));
    assert_eq!(assembler.relations.len(), MOST_OTHERS);
    // Ours is known all the same.
    resolve(&mut assembler);
    assert!(matches!(assembler.event_of(insert("1")).unwrap(), Event::Change(_)));
}

#[test]
fn what_was_durable_before_is_left_out_by_its_commit_and_not_by_its_rows() {
    let mut assembler = assembler(200);
    // Sent again although its end is the checkpoint.
    assembler.event_of(begin(190)).unwrap();
    resolve(&mut assembler);
    assert!(matches!(assembler.event_of(insert("1")).unwrap(), Event::Nothing));
    let fence = Fence::Low(crate::source::fence::ChunkId(uuid::Uuid::nil()));
    let message = pgoutput::LogicalMessage {
        transactional: true,
        lsn: Lsn(180),
        prefix: crate::source::fence::PREFIX.into(),
        content: fence.content().into(),
    };
    assert!(matches!(
        assembler.event_of(Message::Logical(message)).unwrap(),
        Event::Nothing
    ));
    assert!(matches!(
        assembler.event_of(commit(190, 200)).unwrap(),
        Event::Commit { .. }
    ));
    // The next one commits right behind it; where its rows stand in the log is nobody's business.
    assembler.event_of(begin(200)).unwrap();
    assert!(matches!(assembler.event_of(insert("2")).unwrap(), Event::Change(_)));
    assert!(matches!(
        assembler.event_of(commit(200, 230)).unwrap(),
        Event::Commit { end_lsn: Lsn(230), .. }
    ));
}

#[test]
fn a_row_without_its_key_is_refused_and_never_given_one() {
    let mut assembler = assembler(0);
    assembler.event_of(begin(100)).unwrap();
    resolve(&mut assembler);
    let update = |old, row| {
        Message::Update(Update {
            relation: TABLE,
            old,
            row,
        })
    };
    // The server repeats a key that is kept out of line in the old image.
    let whole = update(
        OldTuple::Key(row([text("key"), ColumnValue::Null])),
        row([ColumnValue::Unchanged, text("new")]),
    );
    let Event::Change(change) = assembler.event_of(whole).unwrap() else {
        panic!("no change");
    };
    assert_eq!(change.key, Key([Bytes::from_static(b"key")].into()));
    assert!(matches!(
        change.operation,
        Operation::Update {
            old_key: None,
            ref row
        } if row.is_full()
    ));
    for message in [
        update(OldTuple::Absent, row([ColumnValue::Unchanged, text("new")])),
        update(OldTuple::Absent, row([ColumnValue::Null, text("new")])),
        Message::Delete(Delete {
            relation: TABLE,
            old: OldTuple::Absent,
        }),
        Message::Delete(Delete {
            relation: TABLE,
            old: OldTuple::Key(row([ColumnValue::Null, ColumnValue::Null])),
        }),
        Message::Insert(Insert {
            relation: TABLE,
            row: row([ColumnValue::Null, text("x")]),
        }),
    ] {
        assert!(matches!(assembler.event_of(message), Ok(Event::Unidentifiable(_))));
    }
}

#[test]
fn what_comes_out_of_order_ends_the_stream() {
    let mut outside = assembler(0);
    assert!(matches!(outside.event_of(insert("1")), Err(StreamError::Order { .. })));
    assert!(matches!(outside.event_of(commit(1, 2)), Err(StreamError::Order { .. })));
    let mut within = assembler(0);
    within.event_of(begin(100)).unwrap();
    assert!(matches!(
        within.event_of(insert("1")),
        Err(StreamError::UnknownRelation(7))
    ));
    assert!(matches!(within.event_of(begin(100)), Err(StreamError::Order { .. })));
    assert!(matches!(
        within.event_of(commit(101, 110)),
        Err(StreamError::CommitMismatch { .. })
    ));
}

#[test]
fn a_change_goes_to_the_table_that_its_oid_is_now_and_any_other_is_counted() {
    let mut renamed = assembler(0);
    renamed.event_of(begin(100)).unwrap();
    let then = Message::Relation(relation_message("name_of_then"));
    let Event::Relation(_, table) = renamed.event_of(then).unwrap() else {
        panic!("not looked up");
    };
    assert_eq!(table, TableName::new("public", NOW));

    // Another table that had the name before.
    let mut other = Assembler::new(Lsn(0), |_| None);
    other.event_of(begin(100)).unwrap();
    assert!(matches!(
        other.event_of(Message::Relation(relation_message(NOW))).unwrap(),
        Event::Nothing
    ));
    assert!(matches!(
        other.event_of(insert("1")).unwrap(),
        Event::PassedOver(_, PassedOver::NotSelected)
    ));
}
