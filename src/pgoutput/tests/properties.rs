//! The decoder's properties: what is encoded is decoded, and no bytes make it panic.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::column;
use crate::change::{ColumnValue, RelationId, Row, TableName, Xid};
use crate::lsn::Lsn;
use crate::pgoutput::*;

/// Writes what [`decode`] reads.
fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    match message {
        Message::Begin(begin) => {
            out.put_u8(b'B');
            out.put_u64(begin.final_lsn.0);
            out.put_i64(begin.commit_time.0);
            out.put_u32(begin.xid.0);
        }
        Message::Commit(commit) => {
            out.put_slice(b"C\0");
            out.put_u64(commit.commit_lsn.0);
            out.put_u64(commit.end_lsn.0);
            out.put_i64(commit.commit_time.0);
        }
        Message::Origin(origin) => {
            out.put_u8(b'O');
            out.put_u64(origin.origin_lsn.0);
            put_name(&mut out, &origin.name);
        }
        Message::Relation(relation) => {
            out.put_u8(b'R');
            out.put_u32(relation.id.0);
            put_name(&mut out, &relation.table.schema);
            put_name(&mut out, &relation.table.name);
            out.put_u8(match relation.replica_identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            out.put_u16(relation.columns.len() as u16);
            for column in &relation.columns {
                out.put_u8(column.part_of_key.into());
                put_name(&mut out, &column.name);
                out.put_u32(column.type_oid);
                out.put_i32(column.type_modifier);
            }
        }
        Message::Type(kind) => {
            out.put_u8(b'Y');
            out.put_u32(kind.oid);
            put_name(&mut out, &kind.schema);
            put_name(&mut out, &kind.name);
        }
        Message::Insert(insert) => {
            out.put_u8(b'I');
            out.put_u32(insert.relation.0);
            put_row(&mut out, b'N', &insert.row);
        }
        Message::Update(update) => {
            out.put_u8(b'U');
            out.put_u32(update.relation.0);
            put_old(&mut out, &update.old);
            put_row(&mut out, b'N', &update.row);
        }
        Message::Delete(delete) => {
            out.put_u8(b'D');
            out.put_u32(delete.relation.0);
            put_old(&mut out, &delete.old);
        }
        Message::Truncate(truncate) => {
            out.put_u8(b'T');
            out.put_u32(truncate.relations.len() as u32);
            out.put_u8(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            for relation in &truncate.relations {
                out.put_u32(relation.0);
            }
        }
        Message::Logical(message) => {
            out.put_u8(b'M');
            out.put_u8(message.transactional.into());
            out.put_u64(message.lsn.0);
            put_name(&mut out, &message.prefix);
            out.put_u32(message.content.len() as u32);
            out.put_slice(&message.content);
        }
    }
    out.freeze()
}

fn put_name(out: &mut BytesMut, name: &str) {
    out.put_slice(name.as_bytes());
    out.put_u8(0);
}

fn put_old(out: &mut BytesMut, old: &OldTuple) {
    match old {
        OldTuple::Key(row) => put_row(out, b'K', row),
        OldTuple::Full(row) => put_row(out, b'O', row),
        OldTuple::Absent => {}
    }
}

fn put_row(out: &mut BytesMut, kind: u8, row: &Row) {
    out.put_u8(kind);
    out.put_u16(row.0.len() as u16);
    for value in &row.0 {
        match value {
            ColumnValue::Null => out.put_u8(b'n'),
            ColumnValue::Unchanged => out.put_u8(b'u'),
            ColumnValue::Text(text) => {
                out.put_u8(b't');
                out.put_u32(text.len() as u32);
                out.put_slice(text);
            }
        }
    }
}

prop_compose! {
    fn a_name()(name in "[^\0]{1,20}") -> String { name }
}

fn a_value() -> impl Strategy<Value = ColumnValue> {
    prop_oneof![
        Just(ColumnValue::Null),
        Just(ColumnValue::Unchanged),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|text| ColumnValue::Text(text.into())),
    ]
}

fn a_row() -> impl Strategy<Value = Row> {
    prop::collection::vec(a_value(), 0..12).prop_map(|values| Row(values.into()))
}

fn an_identity() -> impl Strategy<Value = ReplicaIdentity> {
    prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ]
}

fn a_column() -> impl Strategy<Value = Column> {
    (any::<bool>(), a_name(), any::<u32>(), any::<i32>())
        .prop_map(|(part_of_key, name, type_oid, type_modifier)| column(part_of_key, &name, type_oid, type_modifier))
}

fn an_old_tuple() -> impl Strategy<Value = OldTuple> {
    prop_oneof![a_row().prop_map(OldTuple::Key), a_row().prop_map(OldTuple::Full)]
}

fn a_message() -> impl Strategy<Value = Message> {
    let lsn = any::<u64>().prop_map(Lsn);
    let moment = any::<i64>().prop_map(PgTimestamp);
    let relation = any::<u32>().prop_map(RelationId);
    prop_oneof![
        (lsn.clone(), moment.clone(), any::<u32>()).prop_map(|(final_lsn, commit_time, xid)| Message::Begin(Begin {
            final_lsn,
            commit_time,
            xid: Xid(xid),
        })),
        (lsn.clone(), lsn.clone(), moment).prop_map(|(commit_lsn, end_lsn, commit_time)| Message::Commit(Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        })),
        (lsn.clone(), a_name()).prop_map(|(origin_lsn, name)| Message::Origin(Origin {
            origin_lsn,
            name: name.into(),
        })),
        (
            relation.clone(),
            a_name(),
            a_name(),
            an_identity(),
            prop::collection::vec(a_column(), 0..8)
        )
            .prop_map(
                |(id, schema, name, replica_identity, columns)| Message::Relation(RelationMessage {
                    id,
                    table: TableName::new(schema, name),
                    replica_identity,
                    columns: columns.into(),
                })
            ),
        (any::<u32>(), a_name(), a_name()).prop_map(|(oid, schema, name)| Message::Type(TypeMessage {
            oid,
            schema: schema.into(),
            name: name.into(),
        })),
        (relation.clone(), a_row()).prop_map(|(relation, row)| Message::Insert(Insert { relation, row })),
        (
            relation.clone(),
            prop_oneof![an_old_tuple(), Just(OldTuple::Absent)],
            a_row()
        )
            .prop_map(|(relation, old, row)| Message::Update(Update { relation, old, row })),
        (relation.clone(), an_old_tuple()).prop_map(|(relation, old)| Message::Delete(Delete { relation, old })),
        (any::<bool>(), any::<bool>(), prop::collection::vec(relation, 0..6)).prop_map(
            |(cascade, restart_identity, relations)| Message::Truncate(Truncate {
                cascade,
                restart_identity,
                relations: relations.into(),
            })
        ),
        (any::<bool>(), lsn, a_name(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(transactional, lsn, prefix, content)| Message::Logical(LogicalMessage {
                transactional,
                lsn,
                prefix: prefix.into(),
                content: content.into(),
            })
        ),
    ]
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(message in a_message()) {
        prop_assert_eq!(decode(encode(&message)), Ok(message));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(kind in prop::sample::select(b"BCORYIUDTM?".to_vec()), tail: Vec<u8>) {
        let mut payload = vec![kind];
        payload.extend(tail);
        let _ = decode(payload.into());
    }

    #[test]
    fn a_damaged_message_is_decoded_or_refused(
        message in a_message(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: Option<prop::sample::Index>,
    ) {
        let mut payload = encode(&message).to_vec();
        for (place, byte) in damage {
            let place = place.index(payload.len());
            payload[place] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        let _ = decode(payload.into());
    }
}
