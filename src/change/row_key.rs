//! A row's key: by columns, or, where only its own values tell it apart from others, a digest of all of them.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{ColumnValue, Key, Relation, Row, RowKey};

impl Relation {
    /// The row's key; `None` if a key column is NULL, unchanged (P22) or absent. Where rows are counted, a digest of all
    /// values; `None` if one of them is unchanged.
    #[must_use]
    pub fn key_of(&self, row: &Row) -> Option<Key> {
        let RowKey::Columns(positions) = &self.key else {
            return whole_row(row);
        };
        positions
            .iter()
            .map(|&column| match row.0.get(column) {
                Some(ColumnValue::Text(text)) => Some(text.clone()),
                _ => None,
            })
            .collect::<Option<_>>()
            .map(Key)
    }
}

/// A digest of all values: equal rows have the same key, and it is small whatever the row holds. `None` where a value is
/// not known.
fn whole_row(row: &Row) -> Option<Key> {
    let mut digest = Sha256::new();
    for value in &row.0 {
        match value {
            ColumnValue::Null => digest.update([0]),
            ColumnValue::Text(text) => {
                digest.update([1]);
                // The length keeps apart what is split differently: ("a", "bc") and ("ab", "c").
                digest.update((text.len() as u64).to_le_bytes());
                digest.update(text);
            }
            ColumnValue::Unchanged => return None,
        }
    }
    let hex: String = digest
        .finalize()
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect();
    Some(Key([Bytes::from(hex)].into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[Option<&'static str>]) -> Row {
        Row(values
            .iter()
            .map(|value| {
                value.map_or(ColumnValue::Null, |text| {
                    ColumnValue::Text(Bytes::from_static(text.as_bytes()))
                })
            })
            .collect())
    }

    #[test]
    fn rows_have_the_same_key_only_if_all_values_are_the_same() {
        let rows = [
            row(&[Some("a"), Some("bc")]),
            row(&[Some("ab"), Some("c")]),
            row(&[Some("abc"), Some("")]),
            row(&[Some("abc"), None]),
            row(&[None, Some("abc")]),
            row(&[Some("abc")]),
            row(&[]),
        ];
        let keys: std::collections::BTreeSet<Key> = rows.iter().map(|row| whole_row(row).unwrap()).collect();
        assert_eq!(keys.len(), rows.len());
        assert_eq!(whole_row(&rows[0]), whole_row(&rows[0].clone()));
    }

    #[test]
    fn a_row_with_an_unknown_value_has_none() {
        assert_eq!(whole_row(&Row([ColumnValue::Unchanged].into())), None);
    }
}
