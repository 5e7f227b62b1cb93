//! A column of a batch as one `text[]` parameter, written straight into the driver's buffer.
//!
//! The binary form of an array, <https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/arrayfuncs.c>
//! (`array_recv`): number of dimensions, whether there are NULLs, the elements' type, length and lower bound of each
//! dimension, then each element as its length (-1: NULL) and its bytes.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::change::{ColumnValue, Key, Row};

/// One column of many rows. Nothing is copied before it is sent.
#[derive(Debug)]
pub(in crate::agent_db::apply) enum TextArray<'a> {
    /// A column of row images.
    Column {
        rows: &'a [&'a Row],
        /// Its position in the images.
        column: usize,
    },
    /// A part of keys.
    KeyPart {
        keys: &'a [&'a Key],
        /// Its position in the keys.
        part: usize,
    },
    /// Texts that are made for the statement.
    Texts(&'a [String]),
}

impl<'a> TextArray<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Column { rows, .. } => rows.len(),
            Self::KeyPart { keys, .. } => keys.len(),
            Self::Texts(texts) => texts.len(),
        }
    }

    pub(super) fn cell(&self, index: usize) -> Option<&'a [u8]> {
        match *self {
            Self::Column { rows, column } => match rows.get(index)?.0.get(column)? {
                ColumnValue::Text(text) => Some(text),
                // An unchanged column is never among those that a statement sets; see `plan`.
                ColumnValue::Null | ColumnValue::Unchanged => None,
            },
            Self::KeyPart { keys, part } => keys.get(index)?.0.get(part).map(AsRef::as_ref),
            Self::Texts(texts) => texts.get(index).map(String::as_bytes),
        }
    }
}

impl ToSql for TextArray<'_> {
    fn to_sql(&self, _type: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let len = self.len();
        // Reserved at once: a buffer that grows is in memory twice.
        let bytes: usize = (0..len).map(|index| 4 + self.cell(index).map_or(0, <[u8]>::len)).sum();
        out.reserve(20 + bytes);
        out.put_i32(1);
        // The server computes the flag itself.
        out.put_i32(1);
        out.put_u32(Type::TEXT.oid());
        out.put_i32(i32::try_from(len)?);
        out.put_i32(1);
        for index in 0..len {
            match self.cell(index) {
                Some(text) => {
                    out.put_i32(i32::try_from(text.len())?);
                    out.put_slice(text);
                }
                None => out.put_i32(-1),
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(type_: &Type) -> bool {
        *type_ == Type::TEXT_ARRAY
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn is_what_the_drivers_own_encoding_is_but_for_the_null_flag() {
        let rows: Vec<Row> = [Some("a"), None, Some(""), Some("é\n{\"},")]
            .into_iter()
            .map(|text| {
                let value = text.map_or(ColumnValue::Null, |text| {
                    ColumnValue::Text(Bytes::from_static(text.as_bytes()))
                });
                Row([ColumnValue::Null, value].into())
            })
            .collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        TextArray::Column { rows: &rows, column: 1 }
            .to_sql(&Type::TEXT_ARRAY, &mut ours)
            .unwrap();
        vec![Some("a"), None, Some(""), Some("é\n{\"},")]
            .to_sql(&Type::TEXT_ARRAY, &mut theirs)
            .unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn takes_a_part_of_each_key() {
        let keys = [
            Key([Bytes::from("1"), Bytes::from("x")].into()),
            Key([Bytes::from("2"), Bytes::from("y")].into()),
        ];
        let keys: Vec<&Key> = keys.iter().collect();
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        TextArray::KeyPart { keys: &keys, part: 1 }
            .to_sql(&Type::TEXT_ARRAY, &mut ours)
            .unwrap();
        // The driver's own flag for NULLs is computed; take one into the comparison that has it set.
        vec!["x", "y"].to_sql(&Type::TEXT_ARRAY, &mut theirs).unwrap();
        assert_eq!(ours[8..], theirs[8..]);
    }
}
