//! A row as both databases have it just now, and whether they differ. For people who ask why a row is as it is: it reads, changes
//! nothing, and needs no daemon. A change that is on its way is a difference here; who asks looks again.

use std::sync::Arc;

use crate::agent_db::{Comparer, DifferenceKind, LookedAt, RowLook};
use crate::change::{ColumnValue, Key, Row, TableName};
use crate::copy::{CopyError, present_rows};
use crate::source::publication::published;
use crate::source::{KeysOfTable, Selection, Source, SourceTable};

use super::error::SyncError;
use super::settings::PipelineSettings;

/// A row in both databases.
#[derive(Debug, Clone)]
pub struct RowStory {
    /// The row's key as the daemon knows it; `None` where the table's rows have none.
    pub key: Option<Key>,
    /// Why the row can't be looked at in both; the rest says nothing then.
    pub unread: Option<String>,
    /// Whether the Site DB has it, and the publication sends it.
    pub in_site: bool,
    /// Whether the Site DB has it, but the publication's row filter leaves it out.
    pub filtered: bool,
    /// The row in the Agent DB.
    pub in_agent: Option<LookedAt>,
    /// In what they differ; `None`: in nothing.
    pub difference: Option<DifferenceKind>,
    /// The published columns with the Site DB's values as text; NULL, and those of a row that is not there, are `None`.
    pub site_values: Vec<(Arc<str>, Option<String>)>,
}

impl RowStory {
    const fn unread(key: Option<Key>, why: String) -> Self {
        Self {
            key,
            unread: Some(why),
            in_site: false,
            filtered: false,
            in_agent: None,
            difference: None,
            site_values: Vec::new(),
        }
    }
}

/// Reads a row by its key's values, in the order of the key's columns.
///
/// # Errors
/// A connection's, or a fault that is not the table's.
pub async fn row_story(settings: &PipelineSettings, table: &TableName, key: &[String]) -> Result<RowStory, SyncError> {
    let key = Key(key.iter().map(|part| part.clone().into()).collect());
    let source = Source::connect(&settings.site, "twinlog why").await?;
    let selection = Selection::new(&settings.tables)?;
    if !selection.takes(table) {
        let why = "the table is not selected by sync.tables: it is not replicated".to_owned();
        return Ok(RowStory::unread(Some(key), why));
    }
    let mut tables = published(source.client(), &settings.publication, &selection).await?;
    let Some(of_site) = tables.remove(table) else {
        let why = format!(
            "the Site DB has no such table, or the publication {} does not have it: it is not replicated",
            settings.publication
        );
        return Ok(RowStory::unread(Some(key), why));
    };
    let agent = match Comparer::connect(&settings.agent, &of_site.description()).await {
        Ok(agent) => agent,
        Err(error) if error.table().is_some() => {
            return Ok(RowStory::unread(Some(key), SyncError::from(error).explain()));
        }
        Err(error) => return Err(error.into()),
    };
    let relation = agent.relation();
    if relation.counts_rows() {
        let why =
            "no key tells the table's rows apart: they are counted, and twinlog verify compares the numbers".to_owned();
        return Ok(RowStory::unread(None, why));
    }
    let columns: Vec<String> = relation.key_columns().map(str::to_owned).collect();
    if columns.len() != key.0.len() {
        let why = format!(
            "its rows are told apart by {}: give these values, in this order",
            columns.join(", ")
        );
        return Ok(RowStory::unread(None, why));
    }
    let wanted = KeysOfTable {
        table: of_site,
        relation: Arc::clone(&relation),
        keys: vec![key.clone()],
    };
    let wanted = [wanted];
    let read = source.read_parked(&wanted).await?;
    let row = read.tables.first().and_then(|rows| rows.rows.first().cloned());
    let filtered = row.is_none() && passes_without_filter(&source, &wanted).await?;
    let present = present_rows(&wanted, read).map_err(|_| CopyError::StreamEnded)?;
    let differences = agent.compare(&present.changes).await?;
    let look = RowLook::connect(&settings.agent, "twinlog why").await?;
    Ok(RowStory {
        in_site: row.is_some(),
        filtered,
        in_agent: look
            .with_key(table, &columns, agent.key_operators(), &key.texts())
            .await?,
        difference: differences.into_iter().next().map(|difference| difference.kind),
        site_values: relation
            .columns
            .iter()
            .cloned()
            .zip(texts(row.as_ref(), relation.columns.len()))
            .collect(),
        key: Some(key),
        unread: None,
    })
}

/// Whether the Site DB has a row that the publication's row filter leaves out.
async fn passes_without_filter(source: &Source, wanted: &[KeysOfTable; 1]) -> Result<bool, SyncError> {
    let [KeysOfTable { table, relation, keys }] = wanted;
    if table.row_filter.is_none() {
        return Ok(false);
    }
    let unfiltered = KeysOfTable {
        table: SourceTable {
            row_filter: None,
            ..table.clone()
        },
        relation: Arc::clone(relation),
        keys: keys.clone(),
    };
    let read = source.read_parked(&[unfiltered]).await?;
    Ok(read.tables.iter().any(|rows| !rows.rows.is_empty()))
}

fn texts(row: Option<&Row>, width: usize) -> Vec<Option<String>> {
    let text = |value: &ColumnValue| value.text().map(|text| String::from_utf8_lossy(text).into_owned());
    row.map_or_else(|| vec![None; width], |row| row.0.iter().map(text).collect())
}
