//! The key of a row that only its own values tell apart from others.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{ColumnValue, Key, Row};

/// A digest of all values: equal rows have the same key, and it is small whatever the row holds. `None` where a value is
/// not known.
pub(super) fn key_of(row: &Row) -> Option<Key> {
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
        let keys: std::collections::BTreeSet<Key> = rows.iter().map(|row| key_of(row).unwrap()).collect();
        assert_eq!(keys.len(), rows.len());
        assert_eq!(key_of(&rows[0]), key_of(&rows[0].clone()));
    }

    #[test]
    fn a_row_with_an_unknown_value_has_none() {
        assert_eq!(key_of(&Row([ColumnValue::Unchanged].into())), None);
    }
}
