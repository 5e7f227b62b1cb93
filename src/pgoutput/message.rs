//! The messages of the protocol, with the meaning that the specification gives to each field.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use std::sync::Arc;

use bytes::Bytes;

use crate::change::{RelationId, Row, TableName, Xid};
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins (`B`).
    Begin(Begin),
    /// The transaction ends (`C`).
    Commit(Commit),
    /// The server where the transaction originated (`O`).
    Origin(Origin),
    /// A table's columns; sent before its first change and after every change of its columns (`R`).
    Relation(RelationMessage),
    /// A type that is not built in; comes before the relation that uses it (`Y`).
    Type(TypeMessage),
    /// A row is new (`I`).
    Insert(Insert),
    /// A row changed (`U`).
    Update(Update),
    /// A row is gone (`D`).
    Delete(Delete),
    /// Tables were emptied (`T`).
    Truncate(Truncate),
    /// A message written with `pg_logical_emit_message` (`M`).
    Logical(LogicalMessage),
}

/// A transaction begins. Transactions are sent whole and in commit order, never interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// The position of the transaction's commit record: [`Commit::commit_lsn`] of its end.
    pub final_lsn: Lsn,
    /// When it committed, by the source's clock.
    pub commit_time: PgTimestamp,
    /// The transaction's id on the source.
    pub xid: Xid,
}

/// The transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The position of the commit record. Not a position to acknowledge: it would replay this transaction.
    pub commit_lsn: Lsn,
    /// The position just after the commit record: what is acknowledged, and where a restart resumes.
    pub end_lsn: Lsn,
    /// When it committed, by the source's clock.
    pub commit_time: PgTimestamp,
}

/// The transaction was itself replicated into the source. There may be several in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The position of its commit on the server that it came from; not comparable with positions of the source.
    pub origin_lsn: Lsn,
    /// The name of the replication origin on the source.
    pub name: Arc<str>,
}

/// The table's `REPLICA IDENTITY`: what the server sends of the old row of an update or a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one (`d`).
    Default,
    /// Nothing: updates and deletes cannot be published (`n`).
    Nothing,
    /// All columns (`f`).
    Full,
    /// The columns of a unique index (`i`).
    Index,
}

/// A table's columns from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMessage {
    /// The id by which the changes name it.
    pub id: RelationId,
    /// Schema and name. (The protocol writes `pg_catalog` as an empty schema; here it is written in full.)
    pub table: TableName,
    /// What the server sends of the old row.
    pub replica_identity: ReplicaIdentity,
    /// Its published columns in the order of the row images; generated columns are left out.
    pub columns: Box<[Column]>,
}

/// A column of a [`RelationMessage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Whether it is part of the replica identity. With [`ReplicaIdentity::Full`], every column is.
    pub part_of_key: bool,
    /// The column's name, unquoted.
    pub name: Arc<str>,
    /// The OID of its type in the source.
    pub type_oid: u32,
    /// Its type's modifier (`atttypmod`), -1 for none.
    pub type_modifier: i32,
}

/// A type that is not built in. The name allows to find the type in another database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeMessage {
    /// Its OID in the source.
    pub oid: u32,
    /// The type's schema, unquoted.
    pub schema: Arc<str>,
    /// The type's name, unquoted.
    pub name: Arc<str>,
}

/// A row is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    /// The table, as its last [`RelationMessage`] described it.
    pub relation: RelationId,
    /// The new row; every value is known.
    pub row: Row,
}

/// The old image of a row, as much of it as the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// The replica identity's columns (`K`). The image has a place for each column; those outside of the key are
    /// NULL and have no meaning.
    Key(Row),
    /// All columns (`O`): the table has `REPLICA IDENTITY FULL`.
    Full(Row),
    /// None: the row's key did not change.
    Absent,
}

/// A row changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The table, as its last [`RelationMessage`] described it.
    pub relation: RelationId,
    /// The row before the change.
    pub old: OldTuple,
    /// The row after the change. Large values that did not change may be left out.
    pub row: Row,
}

/// A row is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The table, as its last [`RelationMessage`] described it.
    pub relation: RelationId,
    /// The deleted row; never [`OldTuple::Absent`].
    pub old: OldTuple,
}

/// Tables were emptied by one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// The statement said CASCADE; the tables that it reached are all named.
    pub cascade: bool,
    /// The statement said RESTART IDENTITY.
    pub restart_identity: bool,
    /// All tables that were emptied.
    pub relations: Box<[RelationId]>,
}

/// A message written with `pg_logical_emit_message`. Sent only if the connection asks for it (`messages 'true'`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Whether it belongs to the open transaction. If not, it comes between transactions, at its own position.
    pub transactional: bool,
    /// Its position in the WAL.
    pub lsn: Lsn,
    /// The prefix under which it was written; names the program that wrote it.
    pub prefix: Arc<str>,
    /// The content: any bytes.
    pub content: Bytes,
}
