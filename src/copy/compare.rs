//! Compares the keys of both databases: which of some keys of the Agent DB the Site DB does not have, and which of them name a row
//! of the Site DB.
//!
//! The Site DB looks a key up by its own type, and that may hold keys for one that the Agent DB keeps apart: a `date` is found by
//! each `timestamptz` of its day, a `citext` by each `text` that differs in case. So where a row's own key is spelled otherwise, the
//! Agent DB says whether both are one. If they are not, the key names no row of the Site DB.
//!
//! A chunk here is a page of the Agent DB's keys, which is looked up in the Site DB. Comparing ranges of keys instead
//! would need the same sort order in both databases; but collations differ between systems, so a key that sorts elsewhere
//! would be deleted by mistake.
//!
//! Not here: what is done about a difference ([`super::reader`] reads the key again between fences, and only then lets its
//! row be deleted).

use std::collections::HashSet;

use super::chunk::RequestedKeys;
use super::error::CopyError;
use crate::agent_db::AgentKeys;
use crate::change::{ColumnValue, Key, Relation, Row};
use crate::source::{ChunkRows, Columns, Source, SourceTable};

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

/// Reads the rows that have one of some keys of the Agent DB, by the comparison of both databases. It may answer for the first of
/// them only.
pub(super) async fn read_keys(
    source: &Source,
    table: &SourceTable,
    relation: &Relation,
    agent: &AgentKeys<'_>,
    keys: &[Key],
) -> Result<(ChunkRows, RequestedKeys), CopyError> {
    let mut chunk = source.read_keys(table, relation, keys, Columns::All).await?;
    // Before rows are left out: their keys are answered too.
    let answered = keys.get(..chunk.answered(keys.len())).unwrap_or(keys);
    leave_out_others(&mut chunk, relation, agent, answered).await?;
    let requested = RequestedKeys {
        keys: answered.to_vec(),
        found_by: std::mem::take(&mut chunk.found_by),
        spelled_alike: table.spells_keys_alike(relation) && table.spells_keys_as(relation, agent.types()),
    };
    Ok((chunk, requested))
}

/// Leaves out the rows whose own key is another one in the Agent DB than the key that found them.
async fn leave_out_others(
    chunk: &mut ChunkRows,
    relation: &Relation,
    agent: &AgentKeys<'_>,
    keys: &[Key],
) -> Result<(), CopyError> {
    let (mut places, mut pairs) = (Vec::new(), Vec::new());
    for (place, (row, &found_by)) in chunk.rows.iter().zip(&chunk.found_by).enumerate() {
        if let (Some(own), Some(requested)) = (relation.key_of(row), keys.get(found_by))
            && own != *requested
        {
            places.push(place);
            pairs.push((requested.clone(), own));
        }
    }
    let others: HashSet<usize> = (agent.apart(&pairs).await?.into_iter())
        .filter_map(|pair| places.get(pair).copied())
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let mut place = 0..;
    chunk
        .rows
        .retain(|_| place.next().is_none_or(|place| !others.contains(&place)));
    let mut place = 0..;
    chunk
        .found_by
        .retain(|_| place.next().is_none_or(|place| !others.contains(&place)));
    Ok(())
}
