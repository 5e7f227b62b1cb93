//! Captured bytes (Postgres 15, taken from a slot by SQL); `properties` has the properties over a test-only encoder.

mod properties;

use bytes::Bytes;
use time::macros::datetime;

use super::*;
use crate::change::{ColumnValue, RelationId, Row, TableName, Xid};
use crate::lsn::Lsn;

fn captured(hex: &str) -> Message {
    decode(bytes(hex)).unwrap()
}

fn bytes(hex: &str) -> Bytes {
    Bytes::from(hex::decode(hex).unwrap())
}

fn text(value: &'static str) -> ColumnValue {
    ColumnValue::Text(Bytes::from_static(value.as_bytes()))
}

fn row(values: impl IntoIterator<Item = ColumnValue>) -> Row {
    Row(values.into_iter().collect())
}

fn column(part_of_key: bool, name: &str, type_oid: u32, type_modifier: i32) -> Column {
    Column {
        part_of_key,
        name: name.into(),
        type_oid,
        type_modifier,
    }
}

#[test]
fn a_transaction_begins_and_ends() {
    assert_eq!(
        captured("420000000001532380000303c202e935e5000002dd"),
        Message::Begin(Begin {
            final_lsn: Lsn(0x0153_2380),
            commit_time: PgTimestamp::from_datetime(datetime!(2026-11-21 06:12:17.508_837 UTC)),
            xid: Xid(733),
        })
    );
    assert_eq!(
        captured("4300000000000153238000000000015323b0000303c202e935e5"),
        Message::Commit(Commit {
            commit_lsn: Lsn(0x0153_2380),
            end_lsn: Lsn(0x0153_23B0),
            commit_time: PgTimestamp(0x0003_03C2_02E9_35E5),
        })
    );
}

#[test]
fn a_relation_keeps_odd_names_as_they_are() {
    let hex = "52000040014f6464202253636800546162206c65006400040169640000000017ffffffff00436f6c0000000019ffffffff00\
               6269670000000019ffffffff006e00000006a400050006";
    assert_eq!(
        captured(hex),
        Message::Relation(RelationMessage {
            id: RelationId(16385),
            table: TableName::new("Odd \"Sch", "Tab le"),
            replica_identity: ReplicaIdentity::Default,
            columns: Box::new([
                column(true, "id", 23, -1),
                column(false, "Col", 25, -1),
                column(false, "big", 25, -1),
                column(false, "n", 1700, 0x0005_0006),
            ]),
        })
    );
}

#[test]
fn a_relation_may_have_no_columns_and_its_rows_no_values() {
    let Message::Relation(relation) = captured("52000040087075626c6963006e6f636f6c7300640000") else {
        panic!("not a relation")
    };
    assert!(relation.columns.is_empty());
    assert_eq!(
        captured("49000040084e0000"),
        Message::Insert(Insert {
            relation: RelationId(16392),
            row: row([]),
        })
    );
}

#[test]
fn every_replica_identity_is_known() {
    for (byte, expected) in [
        ("64", ReplicaIdentity::Default),
        ("6e", ReplicaIdentity::Nothing),
        ("66", ReplicaIdentity::Full),
        ("69", ReplicaIdentity::Index),
    ] {
        let Message::Relation(relation) = captured(&format!("520000000161006200{byte}0000")) else {
            panic!("not a relation")
        };
        assert_eq!(relation.replica_identity, expected);
    }
    assert_eq!(
        decode(bytes("520000000161006200780000")),
        Err(DecodeError::UnknownReplicaIdentity(b'x'))
    );
}

#[test]
fn an_empty_schema_is_pg_catalog() {
    assert_eq!(
        captured("5900000017006d6f6f6400"),
        Message::Type(TypeMessage {
            oid: 23,
            schema: "pg_catalog".into(),
            name: "mood".into(),
        })
    );
    assert_eq!(
        captured("590000400c7075626c6963006d6f6f6400"),
        Message::Type(TypeMessage {
            oid: 16396,
            schema: "public".into(),
            name: "mood".into(),
        })
    );
}

#[test]
fn an_insert_tells_null_from_the_empty_text() {
    assert_eq!(
        captured("49000040014e000474000000022d317400000002c3a974000000006e"),
        Message::Insert(Insert {
            relation: RelationId(16385),
            row: row([text("-1"), text("é"), text(""), ColumnValue::Null]),
        })
    );
}

#[test]
fn an_update_has_the_old_image_that_the_identity_asks_for() {
    assert_eq!(
        captured("55000040014e000474000000022d3174000000016274000000006e"),
        Message::Update(Update {
            relation: RelationId(16385),
            old: OldTuple::Absent,
            row: row([text("-1"), text("b"), text(""), ColumnValue::Null]),
        })
    );
    let null = || ColumnValue::Null;
    assert_eq!(
        captured("55000040014b000474000000022d316e6e6e4e000474000000013274000000016274000000006e"),
        Message::Update(Update {
            relation: RelationId(16385),
            old: OldTuple::Key(row([text("-1"), null(), null(), null()])),
            row: row([text("2"), text("b"), text(""), null()]),
        })
    );
    assert_eq!(
        captured("550000400f4f000274000000013174000000026f6b4e000274000000013274000000026f6b"),
        Message::Update(Update {
            relation: RelationId(16399),
            old: OldTuple::Full(row([text("1"), text("ok")])),
            row: row([text("2"), text("ok")]),
        })
    );
}

#[test]
fn an_unchanged_toast_value_is_not_null() {
    assert_eq!(
        captured("55000040124e000374000000013175740000000132"),
        Message::Update(Update {
            relation: RelationId(16402),
            old: OldTuple::Absent,
            row: row([text("1"), ColumnValue::Unchanged, text("2")]),
        })
    );
}

#[test]
fn a_delete_has_its_key_or_the_whole_row() {
    let null = || ColumnValue::Null;
    assert_eq!(
        captured("44000040014b00047400000001326e6e6e"),
        Message::Delete(Delete {
            relation: RelationId(16385),
            old: OldTuple::Key(row([text("2"), null(), null(), null()])),
        })
    );
    assert_eq!(
        captured("440000400f4f000274000000013274000000026f6b"),
        Message::Delete(Delete {
            relation: RelationId(16399),
            old: OldTuple::Full(row([text("2"), text("ok")])),
        })
    );
}

#[test]
fn a_truncate_names_all_tables_and_its_options() {
    assert_eq!(
        captured("5400000002030000400f00004012"),
        Message::Truncate(Truncate {
            cascade: true,
            restart_identity: true,
            relations: Box::new([RelationId(16399), RelationId(16402)]),
        })
    );
}

#[test]
fn a_logical_message_says_whether_it_belongs_to_the_transaction() {
    assert_eq!(
        captured("4d0100000000015346407477696e6c6f6700000000026869"),
        Message::Logical(LogicalMessage {
            transactional: true,
            lsn: Lsn(0x0153_4640),
            prefix: "twinlog".into(),
            content: Bytes::from_static(b"hi"),
        })
    );
    assert_eq!(
        captured("4d0000000000015346b07477696e206c6f670000000000"),
        Message::Logical(LogicalMessage {
            transactional: false,
            lsn: Lsn(0x0153_46B0),
            prefix: "twin log".into(),
            content: Bytes::new(),
        })
    );
}

#[test]
fn an_origin_names_where_the_transaction_came_from() {
    assert_eq!(
        captured("4f0000000000abcdef757000"),
        Message::Origin(Origin {
            origin_lsn: Lsn(0x00AB_CDEF),
            name: "up".into(),
        })
    );
}

#[test]
fn values_are_slices_of_the_payload() {
    let payload = bytes("49000040014e000474000000022d317400000002c3a974000000006e");
    let whole = payload.as_ptr_range();
    let Ok(Message::Insert(insert)) = decode(payload) else {
        panic!("not an insert")
    };
    let ColumnValue::Text(value) = &insert.row.0[1] else {
        panic!("not a text")
    };
    assert!(whole.contains(&value.as_ptr()));
}

#[test]
fn malformed_messages_are_typed_errors() {
    for (hex, expected) in [
        ("", DecodeError::Empty),
        ("5a", DecodeError::UnknownKind(b'Z')),
        ("42", DecodeError::Truncated { wanted: 8, left: 0 }),
        ("49000040014e", DecodeError::Truncated { wanted: 2, left: 0 }),
        // A value that claims more bytes than there are, and one that claims fewer than none.
        (
            "49000040014e00017400000003ab",
            DecodeError::Truncated { wanted: 3, left: 1 },
        ),
        ("49000040014e000174ffffffff", DecodeError::NegativeLength(-1)),
        // Counts that would take memory for what is not there.
        (
            "49000040014effff6e",
            DecodeError::Truncated {
                wanted: 65_535,
                left: 1,
            },
        ),
        (
            "540fffffff00",
            DecodeError::Truncated {
                wanted: 0x3FFF_FFFC,
                left: 0,
            },
        ),
        ("54ffffffff00", DecodeError::NegativeLength(-1)),
        ("49000040014e00016200000001ab", DecodeError::BinaryValue),
        ("49000040014e000178", DecodeError::UnknownValueKind(b'x')),
        ("49000040014b0000", DecodeError::UnknownTupleKind(b'K')),
        ("55000040014b00004b0000", DecodeError::UnknownTupleKind(b'K')),
        ("44000040014e0000", DecodeError::UnknownTupleKind(b'N')),
        ("49000040084e000000", DecodeError::TrailingBytes(1)),
        ("5900000017ff006d00", DecodeError::NotUtf8),
        ("59000000176d", DecodeError::Unterminated),
        (
            "430100000000015323800000000001532380000303c202e935e5",
            DecodeError::UnknownCommitFlags(1),
        ),
    ] {
        assert_eq!(decode(bytes(hex)), Err(expected), "{hex}");
    }
}

#[test]
fn the_relation_of_a_change_is_known_without_its_values() {
    for (hex, expected) in [
        ("49000040014e00016200000001ab", Some(0x4001)),
        ("55000040024b", Some(0x4002)),
        ("4400004003", Some(0x4003)),
        ("44000040", None),
        ("49", None),
        ("", None),
        ("420000000001532380000303c202e935e5000002dd", None),
        ("5400000002030000400f00004012", None),
    ] {
        assert_eq!(changed_relation(&bytes(hex)), expected.map(RelationId), "{hex}");
    }
}

#[test]
fn every_prefix_of_a_message_is_an_error() {
    for hex in [
        "420000000001532380000303c202e935e5000002dd",
        "430000000000015323800000000001532380000303c202e935e5",
        "55000040014b000474000000022d316e6e6e4e000474000000013274000000016274000000006e",
        "520000400f7075626c696300660066000201610000000017ffffffff016d000000400cffffffff",
        "5400000002030000400f00004012",
        "4d0100000000015346407477696e6c6f6700000000026869",
        "4f0000000000abcdef757000",
    ] {
        let whole = bytes(hex);
        for end in 0..whole.len() {
            assert!(decode(whole.slice(..end)).is_err(), "{hex} cut at {end}");
        }
    }
}
