//! The change of one row: the type that the stream, the copy and the Agent DB's writer share.
//!
//! Values are the text that Postgres printed under pinned settings, untouched; no code here knows a value's type. Pure: no
//! I/O, no SQL. `replication` and `copy` make [`Change`]s, `agent_db` applies them.

mod coalesce;
mod hold;
mod quote;
mod row_key;
mod shape;
mod table;

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use postgres_protocol::escape::escape_identifier;

pub use coalesce::{Coalesced, overlay};
pub use hold::{Hold, HoldCause, REMEDY_FOLLOWS, SeenGone};
pub use quote::{is_unprintable, quote_identifier};
pub use shape::{Marks, Shape};
pub use table::{Identity, SourceFacts, TableDescription};

/// A table's name, unquoted, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct TableName {
    /// The schema, unquoted.
    pub schema: Arc<str>,
    /// The name within the schema, unquoted.
    pub name: Arc<str>,
}

impl TableName {
    /// A table by schema and name, both unquoted.
    #[must_use]
    pub fn new(schema: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// The pattern of `sync.tables` that matches this table alone: what has a meaning in a glob stands in brackets.
    #[must_use]
    pub fn pattern(&self) -> String {
        let escape = |c: char| {
            if "*?[]{}!\\".contains(c) {
                format!("[{c}]")
            } else {
                c.to_string()
            }
        };
        self.to_string().chars().map(escape).collect()
    }

    /// `"schema"."name"`, ready for a statement, also for one that is shown: see [`quote_identifier`].
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }

    /// `"schema"."name"`, as the text of a `regclass`, in which escapes have no meaning.
    #[must_use]
    pub fn regclass(&self) -> String {
        format!("{}.{}", escape_identifier(&self.schema), escape_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A table's OID in the Site DB, by which the stream names it. Has no meaning in the Agent DB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationId(pub u32);

/// A source transaction's id, the 32 bits that the stream carries (they wrap).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Xid(pub u32);

/// One column of a row image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnValue {
    /// SQL NULL.
    Null,
    /// A large value that an UPDATE did not touch and the stream did not repeat (TOAST). Never to be written as NULL.
    Unchanged,
    /// The value as Postgres prints it under the pinned settings.
    Text(Bytes),
}

impl ColumnValue {
    /// The text, if there is one.
    #[must_use]
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Unchanged => None,
        }
    }
}

/// A row image, in the order of its [`Relation`]'s columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(pub Box<[ColumnValue]>);

impl Row {
    /// Whether every column's value is known, so that the row can be inserted.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.0.contains(&ColumnValue::Unchanged)
    }

    /// The same row in an allocation of its own. Values of the stream are slices of the buffer that they were read into (a
    /// megabyte and more), and keep all of it: a row that is kept for long must not.
    #[must_use]
    pub fn compact(&self) -> Self {
        let length = self.0.iter().map(|value| value.text().map_or(0, <[u8]>::len)).sum();
        let mut buffer = BytesMut::with_capacity(length);
        let mut compact = |value: &ColumnValue| match value {
            ColumnValue::Null => ColumnValue::Null,
            ColumnValue::Unchanged => ColumnValue::Unchanged,
            ColumnValue::Text(text) => {
                buffer.extend_from_slice(text);
                ColumnValue::Text(buffer.split().freeze())
            }
        };
        Self(self.0.iter().map(&mut compact).collect())
    }

    /// Bytes held by the values, for limits on memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0
            .iter()
            .map(|value| {
                32 + if let ColumnValue::Text(text) = value {
                    text.len()
                } else {
                    0
                }
            })
            .sum()
    }
}

/// A row's key: the values of the relation's key columns, in key order, never NULL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub Box<[Bytes]>);

impl Key {
    /// The values as texts. They are UTF-8: every session's encoding is pinned, and a key that is not is refused.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    }

    /// The same key in allocations of its own; see [`Row::compact`].
    #[must_use]
    pub fn compact(&self) -> Self {
        Self(self.0.iter().map(|part| Bytes::copy_from_slice(part)).collect())
    }

    /// Bytes held by the values, for limits on memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|part| 32 + part.len()).sum()
    }

    /// The values as lossless JSON text (an array of strings), the form in which a key is stored and shown.
    #[must_use]
    pub fn to_json(&self) -> String {
        let parts: Vec<_> = self.0.iter().map(|part| String::from_utf8_lossy(part)).collect();
        serde_json::to_string(&parts).unwrap_or_default()
    }

    /// Parses what [`Key::to_json`] wrote; `None` if it is anything else.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        let parts: Vec<String> = serde_json::from_str(text).ok()?;
        Some(Self(parts.into_iter().map(Bytes::from).collect()))
    }
}

/// By what a table's rows are told apart in both databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKey {
    /// By the columns of a unique key: their positions, in the order of the Agent DB's index. Never empty.
    Columns(Box<[usize]>),
    /// By all of their values, as there is no unique key: rows may be equal, and are counted.
    WholeRow,
}

/// A table as the stream describes it, with the key by which rows are matched in the Agent DB.
#[derive(Debug, PartialEq, Eq)]
pub struct Relation {
    /// The OID by which the stream names it.
    pub id: RelationId,
    /// The table; it has the same name in both databases.
    pub table: TableName,
    /// Column names in the order of the row images: the published columns only, never generated ones.
    pub columns: Box<[Arc<str>]>,
    /// By what its rows are told apart.
    pub key: RowKey,
}

impl Relation {
    /// Positions of the key's columns, in key order. None where rows are counted.
    #[must_use]
    pub fn key_positions(&self) -> &[usize] {
        match &self.key {
            RowKey::Columns(positions) => positions,
            RowKey::WholeRow => &[],
        }
    }

    /// Whether rows may be equal: they are counted then, and found by no key.
    #[must_use]
    pub fn counts_rows(&self) -> bool {
        self.key == RowKey::WholeRow
    }

    /// Names of the key's columns, unquoted, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &str> {
        self.key_positions()
            .iter()
            .filter_map(|&index| self.columns.get(index).map(|name| &**name))
    }

    /// By what its rows are told apart, as JSON text: the names of the key's columns, or of all columns as `rows`. A parked
    /// key, and a place in a copy, mean nothing under another one.
    #[must_use]
    pub fn key_text(&self) -> String {
        match &self.key {
            RowKey::Columns(_) => serde_json::to_string(&self.key_columns().collect::<Vec<_>>()),
            RowKey::WholeRow => serde_json::to_string(&serde_json::json!({ "rows": self.columns })),
        }
        .unwrap_or_default()
    }
}

/// What happened to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// The row is new (or, from a copy, this is its present state). The image is full.
    Insert(Row),
    /// The row changed. `old_key` is set only if the key changed; the image may have unchanged columns.
    Update {
        /// The key before the change, if it differs from the image's.
        old_key: Option<Key>,
        /// The image after.
        row: Row,
    },
    /// The row is gone.
    Delete,
    /// One of the rows that equal this one is gone. Only where rows are counted (as for [`Operation::Count`]).
    DeleteOne(Row),
    /// One of the rows that equal the old one became the new one. Only where rows are counted.
    ReplaceOne(Box<Replaced>),
    /// So many rows equal this one; from a copy.
    Count {
        /// The row, which may be there no more.
        row: Row,
        /// How many.
        rows: u64,
    },
}

impl Operation {
    /// The row image that it brings.
    #[must_use]
    pub fn row(&self) -> Option<&Row> {
        match self {
            Self::Insert(row) | Self::Update { row, .. } | Self::DeleteOne(row) | Self::Count { row, .. } => Some(row),
            Self::ReplaceOne(replaced) => replaced.new.operation.row(),
            Self::Delete => None,
        }
    }
}

/// The update of a row that is counted, as two changes: the old row goes ([`Operation::DeleteOne`]), the new one comes
/// ([`Operation::Insert`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The old row goes.
    pub old: Change,
    /// The new row comes.
    pub new: Change,
}

/// Where a change came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A transaction of the stream: it is accounted for, and folds into a parked key's entry.
    Stream,
    /// The row's state read from the Site DB (copy, resync, healing) and merged with the stream; heals a parked key.
    Chunk,
}

/// One row's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The table as the stream described it before this change.
    pub relation: Arc<Relation>,
    /// The row's key after the change (before it, for a delete).
    pub key: Key,
    /// What happened to the row.
    pub operation: Operation,
    /// Decides how the change is counted, and what it does to a parked key.
    pub origin: Origin,
}

impl Change {
    /// The same change in allocations of its own; see [`Row::compact`].
    #[must_use]
    pub fn compact(&self) -> Self {
        Self {
            relation: Arc::clone(&self.relation),
            key: self.key.compact(),
            operation: match &self.operation {
                Operation::Insert(row) => Operation::Insert(row.compact()),
                Operation::Update { old_key, row } => Operation::Update {
                    old_key: old_key.as_ref().map(Key::compact),
                    row: row.compact(),
                },
                Operation::Delete => Operation::Delete,
                Operation::DeleteOne(row) => Operation::DeleteOne(row.compact()),
                Operation::ReplaceOne(replaced) => Operation::ReplaceOne(Box::new(Replaced {
                    old: replaced.old.compact(),
                    new: replaced.new.compact(),
                })),
                Operation::Count { row, rows } => Operation::Count {
                    row: row.compact(),
                    rows: *rows,
                },
            },
            origin: self.origin,
        }
    }

    /// About how many bytes of memory it takes, without what its values' buffers hold besides.
    #[must_use]
    pub fn size(&self) -> usize {
        /// The `Change` itself, the boxes of its key and row, and their reference counts.
        const FIXED: usize = 160;
        let row = match &self.operation {
            Operation::ReplaceOne(replaced) => replaced.old.size() + replaced.new.size(),
            other => other.row().map_or(0, Row::size),
        };
        FIXED + self.key.size() + row
    }
}

/// A TRUNCATE, applied in order with the changes around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// The tables of the one statement. After CASCADE the stream names every table that it reached, so the applier
    /// itself never cascades.
    pub relations: Vec<Arc<Relation>>,
    /// The source said RESTART IDENTITY.
    pub restart_identity: bool,
}
