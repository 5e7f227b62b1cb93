//! The decoder: checked reads over one payload.

use std::sync::Arc;

use bytes::Bytes;

use super::message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, RelationMessage, ReplicaIdentity,
    Truncate, TypeMessage, Update,
};
use crate::change::{ColumnValue, RelationId, Row, TableName, Xid};
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// The least bytes of a relation's column: flags (1), an empty name's end (1), type (4), modifier (4).
const COLUMN_MIN: usize = 10;
/// The least bytes of a value: its kind.
const VALUE_MIN: usize = 1;
/// Bytes of a relation's id.
const RELATION_ID: usize = 4;

/// `Relation`: the column is part of the replica identity.
const COLUMN_IS_KEY: u8 = 1;
/// `Truncate`: CASCADE.
const TRUNCATE_CASCADE: u8 = 1;
/// `Truncate`: RESTART IDENTITY.
const TRUNCATE_RESTART_IDENTITY: u8 = 2;
/// `Message`: it is transactional.
const MESSAGE_TRANSACTIONAL: u8 = 1;

/// Why a payload is not a message of the protocol. Names tags and counts only, never values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload is empty.
    #[error("the message is empty")]
    Empty,
    /// The first byte is not a message type of version 1.
    #[error("unknown kind of message {:?}", char::from(*.0))]
    UnknownKind(u8),
    /// The payload ends within the message.
    #[error("the message ends early: {wanted} bytes wanted, {left} left")]
    Truncated {
        /// Bytes that the next field needs.
        wanted: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// The payload goes on after the message.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
    /// A name has no terminating zero byte.
    #[error("a name has no end")]
    Unterminated,
    /// A name is not UTF-8, the encoding that the connection sets.
    #[error("a name is not UTF-8")]
    NotUtf8,
    /// A length or count below zero.
    #[error("a length is negative: {0}")]
    NegativeLength(i32),
    /// A row image has another kind than `K`, `O` or `N`, or one that is not allowed there.
    #[error("unknown kind of row image {:?}", char::from(*.0))]
    UnknownTupleKind(u8),
    /// A value has another kind than `n`, `u` or `t`.
    #[error("unknown kind of value {:?}", char::from(*.0))]
    UnknownValueKind(u8),
    /// A value is in binary form, which is never requested.
    #[error("a value is binary, though text was asked for")]
    BinaryValue,
    /// A replica identity is none of `d`, `n`, `f`, `i`.
    #[error("unknown replica identity {:?}", char::from(*.0))]
    UnknownReplicaIdentity(u8),
    /// Flags of a commit that version 1 does not have.
    #[error("unknown flags {0} of a commit")]
    UnknownCommitFlags(u8),
}

/// Decodes one payload of the stream. The message's values are slices of the payload.
///
/// # Errors
/// The payload is not exactly one well-formed message of protocol version 1.
pub fn decode(payload: Bytes) -> Result<Message, DecodeError> {
    let (&kind, rest) = payload.split_first().ok_or(DecodeError::Empty)?;
    let mut reader = PayloadReader {
        payload: &payload,
        rest,
    };
    let message = match kind {
        b'I' => Message::Insert(insert(&mut reader)?),
        b'U' => Message::Update(update(&mut reader)?),
        b'D' => Message::Delete(delete(&mut reader)?),
        b'B' => Message::Begin(Begin {
            final_lsn: reader.lsn()?,
            commit_time: reader.timestamp()?,
            xid: Xid(reader.u32()?),
        }),
        b'C' => Message::Commit(commit(&mut reader)?),
        b'R' => Message::Relation(relation(&mut reader)?),
        b'O' => Message::Origin(Origin {
            origin_lsn: reader.lsn()?,
            name: reader.name()?,
        }),
        b'Y' => Message::Type(TypeMessage {
            oid: reader.u32()?,
            schema: reader.schema()?,
            name: reader.name()?,
        }),
        b'T' => Message::Truncate(truncate(&mut reader)?),
        b'M' => Message::Logical(logical_message(&mut reader)?),
        unknown => return Err(DecodeError::UnknownKind(unknown)),
    };
    match reader.rest.len() {
        0 => Ok(message),
        left => Err(DecodeError::TrailingBytes(left)),
    }
}

/// The relation whose row a payload inserts, updates or deletes; `None` for any other payload. Reads no value, so it takes
/// values in binary form too.
#[must_use]
pub fn changed_relation(payload: &[u8]) -> Option<RelationId> {
    let (b'I' | b'U' | b'D', rest) = payload.split_first()? else {
        return None;
    };
    let id = rest.first_chunk::<RELATION_ID>()?;
    Some(RelationId(u32::from_be_bytes(*id)))
}

fn insert(reader: &mut PayloadReader<'_>) -> Result<Insert, DecodeError> {
    let relation = reader.relation_id()?;
    match reader.u8()? {
        b'N' => Ok(Insert {
            relation,
            row: reader.row()?,
        }),
        unknown => Err(DecodeError::UnknownTupleKind(unknown)),
    }
}

fn update(reader: &mut PayloadReader<'_>) -> Result<Update, DecodeError> {
    let relation = reader.relation_id()?;
    let (old, next) = match reader.u8()? {
        b'K' => (OldTuple::Key(reader.row()?), reader.u8()?),
        b'O' => (OldTuple::Full(reader.row()?), reader.u8()?),
        kind => (OldTuple::Absent, kind),
    };
    match next {
        b'N' => Ok(Update {
            relation,
            old,
            row: reader.row()?,
        }),
        unknown => Err(DecodeError::UnknownTupleKind(unknown)),
    }
}

fn delete(reader: &mut PayloadReader<'_>) -> Result<Delete, DecodeError> {
    let relation = reader.relation_id()?;
    let old = match reader.u8()? {
        b'K' => OldTuple::Key(reader.row()?),
        b'O' => OldTuple::Full(reader.row()?),
        unknown => return Err(DecodeError::UnknownTupleKind(unknown)),
    };
    Ok(Delete { relation, old })
}

fn commit(reader: &mut PayloadReader<'_>) -> Result<Commit, DecodeError> {
    match reader.u8()? {
        0 => Ok(Commit {
            commit_lsn: reader.lsn()?,
            end_lsn: reader.lsn()?,
            commit_time: reader.timestamp()?,
        }),
        // Postgres's own subscriber refuses them too: an unknown flag may change what the commit means.
        flags => Err(DecodeError::UnknownCommitFlags(flags)),
    }
}

fn relation(reader: &mut PayloadReader<'_>) -> Result<RelationMessage, DecodeError> {
    let id = reader.relation_id()?;
    let schema = reader.schema()?;
    let table = TableName::new(schema, reader.name()?);
    let replica_identity = match reader.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        unknown => return Err(DecodeError::UnknownReplicaIdentity(unknown)),
    };
    let count = usize::from(reader.u16()?);
    reader.expect_at_least(count.saturating_mul(COLUMN_MIN))?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(Column {
            part_of_key: reader.u8()? & COLUMN_IS_KEY != 0,
            name: reader.name()?,
            type_oid: reader.u32()?,
            type_modifier: reader.i32()?,
        });
    }
    Ok(RelationMessage {
        id,
        table,
        replica_identity,
        columns: columns.into_boxed_slice(),
    })
}

fn truncate(reader: &mut PayloadReader<'_>) -> Result<Truncate, DecodeError> {
    let count = reader.length()?;
    let options = reader.u8()?;
    reader.expect_at_least(count.saturating_mul(RELATION_ID))?;
    let mut relations = Vec::with_capacity(count);
    for _ in 0..count {
        relations.push(reader.relation_id()?);
    }
    Ok(Truncate {
        cascade: options & TRUNCATE_CASCADE != 0,
        restart_identity: options & TRUNCATE_RESTART_IDENTITY != 0,
        relations: relations.into_boxed_slice(),
    })
}

fn logical_message(reader: &mut PayloadReader<'_>) -> Result<LogicalMessage, DecodeError> {
    let transactional = reader.u8()? & MESSAGE_TRANSACTIONAL != 0;
    let lsn = reader.lsn()?;
    let prefix = reader.name()?;
    let length = reader.length()?;
    Ok(LogicalMessage {
        transactional,
        lsn,
        prefix,
        content: reader.bytes(length)?,
    })
}

/// Checked reads over a payload.
struct PayloadReader<'a> {
    /// The whole payload, of which values are slices.
    payload: &'a Bytes,
    /// The part that is not read yet.
    rest: &'a [u8],
}

impl<'a> PayloadReader<'a> {
    /// Checks that enough bytes are left for a count that the message claims, before memory is allocated for it.
    fn expect_at_least(&self, wanted: usize) -> Result<(), DecodeError> {
        if self.rest.len() < wanted {
            return Err(self.truncated(wanted));
        }
        Ok(())
    }

    fn truncated(&self, wanted: usize) -> DecodeError {
        DecodeError::Truncated {
            wanted,
            left: self.rest.len(),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.truncated(N))?;
        self.rest = rest;
        Ok(*field)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array().map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn timestamp(&mut self) -> Result<PgTimestamp, DecodeError> {
        self.array().map(|bytes| PgTimestamp(i64::from_be_bytes(bytes)))
    }

    #[inline]
    fn relation_id(&mut self) -> Result<RelationId, DecodeError> {
        self.u32().map(RelationId)
    }

    /// A length or count: 32 bits with a sign.
    #[inline]
    fn length(&mut self) -> Result<usize, DecodeError> {
        let length = self.i32()?;
        usize::try_from(length).map_err(|_| DecodeError::NegativeLength(length))
    }

    #[inline]
    fn bytes(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        let (_, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.truncated(length))?;
        let start = self.payload.len() - self.rest.len();
        self.rest = rest;
        // Within bounds: `rest` is the end of the payload and has at least `length` bytes.
        Ok(self.payload.slice(start..start + length))
    }

    /// A name: bytes up to a zero.
    fn name(&mut self) -> Result<Arc<str>, DecodeError> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(DecodeError::Unterminated)?;
        let (name, rest) = self.rest.split_at_checked(end).ok_or(DecodeError::Unterminated)?;
        self.rest = rest.get(1..).unwrap_or_default();
        std::str::from_utf8(name)
            .map(Arc::from)
            .map_err(|_| DecodeError::NotUtf8)
    }

    /// A schema's name: the protocol writes `pg_catalog` as an empty name.
    fn schema(&mut self) -> Result<Arc<str>, DecodeError> {
        let name = self.name()?;
        Ok(if name.is_empty() { Arc::from("pg_catalog") } else { name })
    }

    /// A row image (`TupleData`).
    fn row(&mut self) -> Result<Row, DecodeError> {
        let count = usize::from(self.u16()?);
        self.expect_at_least(count.saturating_mul(VALUE_MIN))?;
        // Exactly as large as needed, so that boxing it copies nothing.
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(match self.u8()? {
                b't' => {
                    let length = self.length()?;
                    ColumnValue::Text(self.bytes(length)?)
                }
                b'n' => ColumnValue::Null,
                b'u' => ColumnValue::Unchanged,
                b'b' => return Err(DecodeError::BinaryValue),
                unknown => return Err(DecodeError::UnknownValueKind(unknown)),
            });
        }
        Ok(Row(values.into_boxed_slice()))
    }
}
