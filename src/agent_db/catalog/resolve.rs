//! Matches a table of the stream with the Agent DB's: what is wrong with it, or how to write it. Types are matched by
//! name, since the source's OIDs mean nothing here.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Client;

use super::alike::{keeps_apart, prints_alike};
use super::key;
use super::read::{self, ColumnFacts, KeyFacts, TableFacts, UniqueFacts};
use super::target::{Column, Lookup, Target};
use crate::agent_db::error::{AgentError, MissingColumn};
use crate::change::{Relation, RowKey, TableDescription};
use crate::postgres::keys::is_spelled_one_way;
use crate::postgres::quote_identifier;

/// Reads the catalog and matches it with the stream's description.
pub(in crate::agent_db) async fn resolve(
    client: &Client,
    description: &TableDescription,
) -> Result<Target, AgentError> {
    let facts = read::table(client, &description.table, &description.columns).await?;
    matched(description, &facts)
}

/// The table as it can be written.
fn matched(description: &TableDescription, facts: &TableFacts) -> Result<Target, AgentError> {
    if facts.row_security {
        return Err(AgentError::RowSecurity {
            table: description.table.clone(),
            role: facts.role.clone(),
        });
    }
    if facts.unlogged {
        return Err(AgentError::Unlogged {
            table: description.table.clone(),
        });
    }
    // Before the key, which may lack because a column of it does.
    check_missing(description, &facts.columns)?;
    let chosen = key::choose(description, facts)?;
    let (key, equals, collations) = match chosen {
        Some((index, positions)) => {
            let equals = index.columns.iter().map(operator).collect();
            (RowKey::Columns(positions.into()), equals, collations(index, facts))
        }
        None => (RowKey::WholeRow, Vec::new(), Vec::new()),
    };
    if key != RowKey::WholeRow && !facts.rules.is_empty() {
        return Err(AgentError::Rules {
            table: description.table.clone(),
            rules: facts.rules.clone(),
        });
    }
    let columns = columns(description, &facts.columns, &key)?;
    check_unpublished(description, &facts.columns)?;
    if let RowKey::Columns(key) = &key {
        check_key(description, key, &facts.columns)?;
    }
    if key == RowKey::WholeRow {
        check_types(description, &facts.columns)?;
    }
    let lookup = (key == RowKey::WholeRow).then(|| lookup(description, facts)).flatten();
    Ok(Target {
        relation: Arc::new(Relation {
            id: description.id,
            table: description.table.clone(),
            columns: description.columns.iter().map(Arc::clone).collect(),
            key,
        }),
        columns,
        equals,
        collations,
        lookup,
        unpublished: unpublished(description, &facts.columns),
        notes: notes(description, facts),
        partitioned: facts.partitioned,
        guarded: facts.guarded,
        fires_late: facts.fires_late,
        copyable: facts.copyable,
    })
}

/// Each published column must be there.
fn check_missing(description: &TableDescription, facts: &[ColumnFacts]) -> Result<(), AgentError> {
    let declared = |name: &str| {
        let mut declared = description.facts.declared.iter();
        declared.find_map(|(column, kind)| (**column == *name).then(|| kind.clone()))
    };
    let is_there = |name: &str| facts.iter().any(|column| *column.name == *name);
    let missing: Vec<MissingColumn> = (description.columns.iter())
        .filter(|name| !is_there(name))
        .map(|name| MissingColumn {
            name: name.to_string(),
            declared: declared(name),
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(AgentError::ColumnMissing {
        table: description.table.clone(),
        columns: missing,
        types: None,
    })
}

/// How to write each published column, which must let itself be written.
fn columns(description: &TableDescription, facts: &[ColumnFacts], key: &RowKey) -> Result<Vec<Column>, AgentError> {
    let mut columns = Vec::new();
    for (position, name) in description.columns.iter().enumerate() {
        let Some(column) = facts.iter().find(|column| *column.name == **name) else {
            continue;
        };
        if column.generated {
            return Err(AgentError::ColumnGenerated {
                table: description.table.clone(),
                column: name.to_string(),
            });
        }
        columns.push(Column {
            name: quote_identifier(name),
            kind: column.base_type.clone(),
            cast: column.cast.clone(),
            stored: column.stored_type.clone(),
            blanks: column.blanks,
            identity_always: column.identity_always,
            in_key: matches!(key, RowKey::Columns(key) if key.contains(&position)),
            alike: column.deterministic && is_spelled_one_way(&column.base_type),
        });
    }
    Ok(columns)
}

/// The collations of an index, where another one has the same columns and others.
fn collations(index: &UniqueFacts, facts: &TableFacts) -> Vec<Option<String>> {
    let of = |index: &UniqueFacts| -> BTreeMap<String, Option<String>> {
        let columns = index.columns.iter().map(|key| key.column.clone());
        columns.zip(index.collations.iter().cloned()).collect()
    };
    let own = of(index);
    let is_alike = |other: BTreeMap<String, Option<String>>| other.keys().eq(own.keys()) && other != own;
    if facts.unique.iter().map(of).any(is_alike) {
        index.collations.clone()
    } else {
        Vec::new()
    }
}

fn operator(key: &KeyFacts) -> String {
    format!("OPERATOR({}.{})", quote_identifier(&key.operator_schema), key.operator)
}

/// An index by which rows can be looked up. (Not one of arrays: an array of arrays is something else.)
fn lookup(description: &TableDescription, facts: &TableFacts) -> Option<Lookup> {
    facts.leading.iter().find_map(|key| {
        let column = description.columns.iter().position(|name| **name == *key.column)?;
        let is_array = |facts: &ColumnFacts| facts.name == key.column && facts.base_type.ends_with("[]");
        let is_array = facts.columns.iter().any(is_array);
        (!is_array).then(|| Lookup {
            column,
            equals: operator(key),
        })
    })
}

/// What differs in the parts of two types of the same name, if the Agent DB's may change a value: a type of each side.
fn other_part(site: &[String], agent: &ColumnFacts) -> Option<(String, String)> {
    let agent = agent.parts.as_deref()?;
    if site.len() != agent.len() {
        return Some((format!("one of {}", site.len()), format!("one of {}", agent.len())));
    }
    let other = site.iter().zip(agent).find(|(site, agent)| !prints_alike(site, agent));
    other.map(|(site, agent)| (site.clone(), agent.clone()))
}

/// Where rows are counted they are known by their text, so each column must print what the Site DB's printed.
fn check_types(description: &TableDescription, facts: &[ColumnFacts]) -> Result<(), AgentError> {
    for (name, site) in &description.facts.types {
        let agent = facts.iter().find(|column| *column.name == **name);
        if let Some(agent) = agent
            && !prints_alike(site, &agent.declared_type)
        {
            return Err(AgentError::TypeDiffers {
                table: description.table.clone(),
                column: name.to_string(),
                site: site.clone(),
                agent: agent.declared_type.clone(),
            });
        }
    }
    Ok(())
}

/// A collation as it stands in a type's declaration, for people.
const MERGING: &str = "with a collation that takes different texts as equal";

/// Rows that the Site DB tells apart must have different keys in the Agent DB, too.
fn check_key(description: &TableDescription, key: &[usize], facts: &[ColumnFacts]) -> Result<(), AgentError> {
    for name in key.iter().filter_map(|&position| description.columns.get(position)) {
        let site = description.facts.types.iter().find(|(column, _)| column == name);
        let agent = facts.iter().find(|column| *column.name == **name);
        let (Some((_, site)), Some(agent)) = (site, agent) else {
            continue;
        };
        let merges = |site: String, agent: String| AgentError::KeyMerges {
            table: description.table.clone(),
            column: name.to_string(),
            site,
            agent,
        };
        if !agent.enumerated && !keeps_apart(site, &agent.declared_type) {
            return Err(merges(site.clone(), agent.declared_type.clone()));
        }
        if !agent.deterministic && !description.facts.nondeterministic.contains(name) {
            let agent = format!("{} {MERGING}", agent.declared_type);
            return Err(merges(format!("{site} COLLATE pg_catalog.\"default\""), agent));
        }
    }
    Ok(())
}

/// Notes of a table at most.
const MOST_NOTES: usize = 10;

/// What the table can't have as the Site DB has it: values that its types round, cut or pad, and columns that are not sent.
/// A row counts as equal where writing the Site DB's values again would leave it as it is.
fn notes(description: &TableDescription, facts: &TableFacts) -> Option<String> {
    let agent = |name: &str| facts.columns.iter().find(|column| *column.name == *name);
    let changed = description.facts.types.iter().filter_map(|(name, site)| {
        let declared = &agent(name)?.declared_type;
        (!prints_alike(site, declared)).then(|| {
            format!(
                "column {name} is {site} in the Site DB and {declared} in the Agent DB, which may change its values"
            )
        })
    });
    let unsent = description.facts.unsent.iter().filter_map(|name| {
        agent(name).filter(|column| !column.generated)?;
        Some(format!("column {name} is not sent by the Site DB (it is generated there, or not in the column list) and stays as it is in the Agent DB"))
    });
    let other_parts = description.facts.parts.iter().filter_map(|(name, site)| {
        let (site, agent) = other_part(site, agent(name)?)?;
        Some(format!(
            "the type of column {name} has a part that is {site} in the Site DB and {agent} in the Agent DB, which may change its values"
        ))
    });
    let acting = facts.acting_keys.iter().filter_map(|key| {
        let (name, key) = key.split_once('\n')?;
        let is_known = description.facts.acting_keys.iter().any(|known| known == key);
        (!is_known).then(|| {
            format!(
                "foreign key {name} of the Agent DB deletes or changes its rows (ON DELETE, ON UPDATE), and the Site DB has no such key: \
                 rows may differ (make it NO ACTION, or let the daemon's role set session_replication_role)"
            )
        })
    });
    let notes: Vec<String> = changed
        .chain(other_parts)
        .chain(acting)
        .chain(unsent)
        .take(MOST_NOTES)
        .collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// Columns of the Agent DB alone, quoted, that can be given a value.
fn unpublished(description: &TableDescription, facts: &[ColumnFacts]) -> Vec<String> {
    facts
        .iter()
        .filter(|column| !column.generated && !description.columns.iter().any(|name| **name == *column.name))
        .map(|column| quote_identifier(&column.name))
        .collect()
}

/// Columns that are not published must not need a value.
fn check_unpublished(description: &TableDescription, facts: &[ColumnFacts]) -> Result<(), AgentError> {
    let is_published = |name: &str| description.columns.iter().any(|published| **published == *name);
    let unfilled = facts.iter().find_map(|column| {
        let refuses = column.must_be_given.filter(|_| !is_published(&column.name))?;
        Some((column.name.clone(), refuses))
    });
    match unfilled {
        Some((column, refuses)) => Err(AgentError::ColumnUnfilled {
            table: description.table.clone(),
            column,
            refuses,
        }),
        None => Ok(()),
    }
}
