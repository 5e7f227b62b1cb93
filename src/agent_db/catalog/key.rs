//! Which unique index of the Agent DB tells a table's rows apart: pure.
//!
//! It must be one by which every change of the stream names its row, and in which the Site DB never has two rows of one
//! key, or a row without one:
//!
//! - all of its columns are in the replica identity, as an old row brings no others (all columns for FULL, and where rows
//!   are only inserted);
//! - the Site DB has a unique index on these columns or on some of them (the replica identity's own is one, if all of its
//!   columns are sent), and none of them can be NULL there;
//! - it has no collation of its own that takes different texts as equal.
//!
//! Where there is none, and changes name whole rows, rows are counted. A primary key of the Agent DB alone would make one row
//! of several.
//!
//! The primary key is preferred, then an index on exactly the replica identity, then the oldest.

use std::sync::Arc;

use super::read::{TableFacts, UniqueFacts};
use crate::agent_db::error::AgentError;
use crate::change::{Identity, TableDescription};

/// The index, and where its columns stand in the row images. `None` where rows are counted: whole old rows name them, or
/// they are only inserted, and no index tells them apart.
pub(super) fn choose<'f>(
    description: &TableDescription,
    facts: &'f TableFacts,
) -> Result<Option<(&'f UniqueFacts, Vec<usize>)>, AgentError> {
    let unique = &*facts.unique;
    let fitting: Vec<(&UniqueFacts, Vec<usize>)> = unique
        .iter()
        .filter(|index| !index.merges)
        .filter_map(|index| Some((index, positions(description, index)?)))
        .filter(|(_, key)| identifies(description, key))
        .collect();
    let usable = || fitting.iter().filter(|(index, _)| index.immediate);
    let is_identity = |key: &[usize]| match &description.identity {
        Identity::Full => false,
        Identity::Columns(identity) => identity.len() == key.len(),
    };
    let chosen = usable()
        .find(|(index, _)| index.primary)
        .or_else(|| usable().find(|(_, key)| is_identity(key)))
        .or_else(|| usable().next());
    match chosen {
        Some((index, key)) => Ok(Some((index, key.clone()))),
        None if names_whole_rows(description) && !description.columns.is_empty() => Ok(None),
        None => Err(fault(
            description,
            !unique.is_empty() || facts.temporal,
            fitting.iter().map(|(index, _)| *index).find(|index| index.primary),
        )),
    }
}

fn names_whole_rows(description: &TableDescription) -> bool {
    let facts = &description.facts;
    match &description.identity {
        Identity::Full => true,
        // Old rows come in spite of it, without what would tell them apart.
        Identity::Columns(_) if facts.generated_identity || facts.old_rows.is_some() => false,
        Identity::Columns(columns) => columns.is_empty(),
    }
}

/// Where the index's columns stand; `None` where one is not published.
fn positions(description: &TableDescription, index: &UniqueFacts) -> Option<Vec<usize>> {
    let position = |column: &str| description.columns.iter().position(|published| **published == *column);
    index.columns.iter().map(|key| position(&key.column)).collect()
}

/// Whether every change names its row by this key, and no two rows of the Site DB share it.
fn identifies(description: &TableDescription, key: &[usize]) -> bool {
    let names = |positions: &[usize]| -> Vec<&Arc<str>> {
        positions
            .iter()
            .filter_map(|&position| description.columns.get(position))
            .collect()
    };
    let key_names = names(key);
    let facts = &description.facts;
    let covers = |unique: &[&Arc<str>]| unique.iter().all(|column| key_names.contains(column));
    let is_unique = || {
        facts
            .unique
            .iter()
            .any(|index| covers(&index.iter().collect::<Vec<_>>()))
    };
    match &description.identity {
        Identity::Columns(identity) if !identity.is_empty() => {
            let is_of_identity = key.iter().all(|position| identity.contains(position));
            is_of_identity && (facts.identity_is_unique() && covers(&names(identity)) || is_unique())
        }
        Identity::Full | Identity::Columns(_) => {
            key_names.iter().all(|column| facts.not_null.contains(column)) && is_unique()
        }
    }
}

/// What is wrong where no index will do. `has_another`: there is one of other columns, or a primary key of periods, which no
/// upsert can go by. `deferrable`: a primary key that would, if it were checked at once.
fn fault(description: &TableDescription, has_another: bool, deferrable: Option<&UniqueFacts>) -> AgentError {
    let table = description.table.clone();
    if let Some(index) = deferrable {
        return AgentError::DeferrablePrimaryKey {
            table,
            constraint: index.constraint.clone(),
            columns: index.columns.iter().map(|key| key.column.clone()).collect(),
        };
    }
    let mut columns: Vec<String> = match &description.identity {
        Identity::Columns(identity) => identity
            .iter()
            .filter_map(|&position| description.columns.get(position).map(ToString::to_string))
            .collect(),
        Identity::Full => Vec::new(),
    };
    let facts = &description.facts;
    if !facts.identity_is_unique() {
        let is_in = |index: &&Vec<Arc<str>>| index.iter().all(|name| columns.iter().any(|column| *column == **name));
        let Some(index) = facts.unique.iter().find(is_in) else {
            return AgentError::IdentityIncomplete {
                table,
                unsent: facts.unsent_identity.iter().map(ToString::to_string).collect(),
                partitions: facts.narrower_partitions.clone(),
            };
        };
        columns = index.iter().map(ToString::to_string).collect();
    }
    if !has_another || columns.is_empty() {
        return AgentError::NoPrimaryKey {
            table,
            suggested: columns,
        };
    }
    AgentError::NoIndexOnIdentity { table, columns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_db::catalog::read::KeyFacts;
    use crate::change::{RelationId, SourceFacts, TableName};

    fn index(primary: bool, immediate: bool, columns: &[&str]) -> UniqueFacts {
        let column = |name: &&str| KeyFacts {
            column: (*name).to_owned(),
            operator_schema: "pg_catalog".to_owned(),
            operator: "=".to_owned(),
        };
        UniqueFacts {
            primary,
            immediate,
            constraint: "c".to_owned(),
            merges: false,
            columns: columns.iter().map(column).collect(),
            collations: Vec::new(),
        }
    }

    /// Of a table with the columns a, b, c and d, of which d can be NULL.
    fn chosen(identity: Identity, site: &[&[&str]], agent: Vec<UniqueFacts>) -> Result<Option<Vec<usize>>, AgentError> {
        let names = |columns: &[&str]| columns.iter().map(|&name| Arc::from(name)).collect::<Vec<_>>();
        let description = TableDescription {
            id: RelationId(1),
            table: TableName::new("public", "t"),
            columns: names(&["a", "b", "c", "d"]),
            identity,
            facts: Arc::new(SourceFacts {
                unique: site.iter().map(|columns| names(columns)).collect(),
                not_null: names(&["a", "b", "c"]),
                ..SourceFacts::default()
            }),
        };
        let facts = TableFacts {
            unique: agent,
            ..TableFacts::default()
        };
        choose(&description, &facts).map(|chosen| chosen.map(|(_, key)| key))
    }

    #[test]
    fn the_primary_key_is_taken_where_it_identifies_old_rows() {
        let agent = || vec![index(true, true, &["a"]), index(false, true, &["b"])];
        let site: &[&[&str]] = &[&["a"], &["b"]];
        assert_eq!(
            chosen(Identity::Columns(vec![0]), site, agent()).unwrap(),
            Some(vec![0])
        );
        assert_eq!(chosen(Identity::Full, site, agent()).unwrap(), Some(vec![0]));
        assert_eq!(chosen(Identity::Columns(vec![]), site, agent()).unwrap(), Some(vec![0]));
        // The primary key is a part of the identity's index, and unique by itself.
        assert_eq!(
            chosen(Identity::Columns(vec![0, 1]), site, agent()).unwrap(),
            Some(vec![0])
        );
    }

    #[test]
    fn else_it_is_the_index_of_the_replica_identity() {
        let agent = || {
            vec![
                index(true, true, &["a"]),
                index(false, true, &["b"]),
                index(false, true, &["c", "b"]),
            ]
        };
        let site: &[&[&str]] = &[&["a"], &["b", "c"]];
        assert_eq!(
            chosen(Identity::Columns(vec![1, 2]), site, agent()).unwrap(),
            Some(vec![2, 1])
        );
        // Even where another one is older and would do.
        let site: &[&[&str]] = &[&["a"], &["b"], &["b", "c"]];
        assert_eq!(
            chosen(Identity::Columns(vec![1, 2]), site, agent()).unwrap(),
            Some(vec![2, 1])
        );
    }

    #[test]
    fn without_a_key_that_is_unique_in_the_site_db_rows_are_counted() {
        let agent = || vec![index(true, true, &["a"])];
        let site: &[&[&str]] = &[&["b"]];
        assert_eq!(chosen(Identity::Full, site, agent()).unwrap(), None);
        assert_eq!(chosen(Identity::Columns(vec![]), site, agent()).unwrap(), None);
        chosen(Identity::Columns(vec![0, 1]), site, agent()).unwrap_err();
        // It holds more than what is unique, and a column of it can be NULL.
        let agent = || vec![index(true, true, &["b", "d"])];
        assert_eq!(chosen(Identity::Full, site, agent()).unwrap(), None);
        let agent = || vec![index(true, true, &["b", "c"])];
        assert_eq!(chosen(Identity::Full, site, agent()).unwrap(), Some(vec![1, 2]));
    }

    #[test]
    fn what_lacks_is_said() {
        let (site, id): (&[&[&str]], _) = (&[&["a"]], || Identity::Columns(vec![0]));
        let none = chosen(id(), site, Vec::new()).unwrap_err();
        assert!(matches!(none, AgentError::NoPrimaryKey { suggested, .. } if suggested == ["a"]));
        let other = chosen(id(), site, vec![index(true, true, &["b"])]).unwrap_err();
        assert!(matches!(other, AgentError::NoIndexOnIdentity { columns, .. } if columns == ["a"]));
        let late = chosen(id(), site, vec![index(true, false, &["a"])]).unwrap_err();
        assert!(matches!(late, AgentError::DeferrablePrimaryKey { columns, .. } if columns == ["a"]));
        let instead = vec![index(true, false, &["a"]), index(false, true, &["a"])];
        assert_eq!(chosen(id(), site, instead).unwrap(), Some(vec![0]));
    }
}
