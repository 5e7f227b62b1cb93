//! Compares a chunk of both databases: today, which of some keys of the Agent DB the Site DB does not have. What compares
//! the whole rows of a chunk belongs here too.
//!
//! A chunk here is a page of the Agent DB's keys, which is looked up in the Site DB. Comparing ranges of keys instead
//! would need the same sort order in both databases; but collations differ between systems, so a key that sorts elsewhere
//! would be deleted by mistake.
//!
//! Not here: what is done about a difference ([`super::reader`] reads the key again between fences, and only then lets its
//! row be deleted).

use std::collections::HashSet;

use super::error::CopyError;
use crate::change::{ColumnValue, Key, Relation, Row};
use crate::source::{Columns, Source, SourceTable};

/// Which of the Agent DB's keys the Site DB does not have, by a read without fences. A key that exists now is not an
/// extra: if it is deleted later, the stream has the DELETE.
pub(super) async fn only_in_agent(
    source: &Source,
    table: &SourceTable,
    relation: &Relation,
    page: &[Key],
) -> Result<Vec<Key>, CopyError> {
    if page.is_empty() {
        return Ok(Vec::new());
    }
    let present = source.read_keys(table, relation, page, Columns::Key).await?;
    let present: HashSet<Key> = present.rows.iter().filter_map(key_of_columns).collect();
    Ok(page.iter().filter(|key| !present.contains(*key)).cloned().collect())
}

/// The key of a row that was read with only its key's columns, in key order.
fn key_of_columns(row: &Row) -> Option<Key> {
    row.0
        .iter()
        .map(|value| match value {
            ColumnValue::Text(text) => Some(text.clone()),
            ColumnValue::Null | ColumnValue::Unchanged => None,
        })
        .collect::<Option<_>>()
        .map(Key)
}
