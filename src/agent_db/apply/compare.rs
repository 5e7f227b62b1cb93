//! Compares rows with what the Agent DB holds, and writes nothing.
//!
//! What a table should hold comes as changes: an insert is a row that should be there as it is, a delete is a key that should
//! not, a count says how many rows should equal one. The same comparison runs over a session of its own ([`Comparer`]), where
//! changes of the stream come in between, and at one place of the stream
//! ([`Transaction::compare`](super::Transaction::compare)), where what it finds is a difference.

use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row as Answer};

use super::sql::{self, Compared, Parameter, StatementText, TextArray};
use crate::agent_db::catalog::{self, Target};
use crate::agent_db::difference::{Difference, DifferenceKind};
use crate::agent_db::error::AgentError;
use crate::change::{Change, Key, Operation, Relation, Row, TableDescription};
use crate::config::DatabaseUrl;
use crate::postgres::row_digest::{Digest, DigestedColumn, DigestedKey, DigestedTable};
use crate::postgres::session_settings::SessionKind;
use crate::postgres::{Side, connect};
use crate::retry::Disposition;

/// A session of the Agent DB that compares rows.
#[derive(Debug)]
pub struct Comparer {
    client: Client,
    target: Arc<Target>,
}

impl Comparer {
    /// Opens the session and looks the table up.
    ///
    /// # Errors
    /// The connection's, or what is wrong with the table.
    pub async fn connect(url: &DatabaseUrl, table: &TableDescription) -> Result<Self, AgentError> {
        let (client, _) = connect::open(Side::Agent, url, "twinlog verify", SessionKind::Reading, None).await?;
        client
            .batch_execute("SET plan_cache_mode = force_generic_plan; SET lock_timeout = '3s'")
            .await
            .map_err(|source| AgentError::from_driver("set up the session", None, source))?;
        let target = Arc::new(Box::pin(catalog::resolve(&client, table)).await?);
        Ok(Self { client, target })
    }

    /// The table as its rows are compared.
    #[must_use]
    pub fn relation(&self) -> Arc<Relation> {
        Arc::clone(&self.target.relation)
    }

    /// The qualified operators by which the values of the key's columns are equal, as the key's index has them.
    #[must_use]
    pub fn key_operators(&self) -> &[String] {
        &self.target.equals
    }

    /// The session, for other statements.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The encoding in which the database stores texts.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn encoding(&self) -> Result<String, AgentError> {
        let row = self
            .client
            .query_one("SELECT pg_catalog.current_setting('server_encoding') AS encoding", &[])
            .await
            .map_err(|source| AgentError::from_driver("read the encoding", None, source))?;
        Ok(row.get("encoding"))
    }

    /// What the table is in both databases, opaque: it differs after another table got its name, or it got other columns.
    /// `site`: what it is in the Site DB.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn identity(&self, site: &str) -> Result<String, AgentError> {
        let table = &self.target.relation.table;
        let row = self
            .client
            .query_opt(
                "SELECT pg_catalog.hashtextextended(pg_catalog.concat_ws(' ', $1::text, c.oid, (SELECT pg_catalog.string_agg(
                     pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum)
                     FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
                     COLLATE pg_catalog.\"C\", 0)::text AS identity
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = $2 AND c.relname = $3",
                &[&site, &&*table.schema, &&*table.name],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the catalog", Some(table), source))?;
        // Without the table: nothing that it was before.
        Ok(row.map_or_else(String::new, |row| row.get("identity")))
    }

    /// How ranges of the table are digested here.
    #[must_use]
    pub fn digested(&self) -> DigestedTable {
        let relation = &self.target.relation;
        let keys = relation.key_positions().iter();
        DigestedTable {
            table: self.target.only(),
            columns: (relation.columns.iter().zip(&self.target.columns))
                .map(|(name, column)| DigestedColumn::new(name, &column.kind))
                .collect(),
            key: keys
                .filter_map(|&key| self.target.columns.get(key))
                .map(|column| DigestedKey {
                    name: column.name.clone(),
                    kind: column.kind.clone(),
                    cast: column.cast.clone(),
                })
                .collect(),
            filters: Vec::new(),
        }
    }

    /// The digest of the rows after a key, up to and with another one.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn digest(
        &self,
        table: &DigestedTable,
        after: Option<&Key>,
        upto: Option<&Key>,
    ) -> Result<Digest, AgentError> {
        let texts: Vec<String> = after.into_iter().chain(upto).flat_map(Key::texts).collect();
        let parameters: Vec<&(dyn ToSql + Sync)> = texts.iter().map(|text| text as _).collect();
        let row = self
            .client
            .query_one(&table.digest(after.is_some(), upto.is_some()), &parameters)
            .await
            .map_err(|source| AgentError::from_driver("read a digest", Some(&self.target.relation.table), source))?;
        Ok(Digest {
            rows: row.get("rows"),
            sum: row.get("sum"),
        })
    }

    /// Compares rows with what the table holds just now. Changes of the stream come in between, so what differs is only
    /// suspected, and what is equal is equal once the stream has come to where both were read.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn compare(&self, expected: &[Change]) -> Result<Vec<Difference>, AgentError> {
        compare(&self.client, &self.target, expected.iter().collect()).await
    }
}

/// Compares what should be there with what is.
pub(super) async fn compare(
    client: &Client,
    target: &Target,
    expected: Vec<&Change>,
) -> Result<Vec<Difference>, AgentError> {
    let (mut rows, mut keys, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for change in expected {
        match &change.operation {
            Operation::Insert(row) | Operation::Update { row, .. } => rows.push(Expected { change, row: Some(row) }),
            Operation::Delete => keys.push(Expected { change, row: None }),
            Operation::Count { row, .. } => counts.push(Expected { change, row: Some(row) }),
            // Of the stream alone.
            Operation::DeleteOne(_) | Operation::ReplaceOne(_) => {}
        }
    }
    let mut differences = Vec::new();
    for (kind, expected) in [(Kind::Rows, rows), (Kind::Keys, keys), (Kind::Counts, counts)] {
        differences.extend(Box::pin(compare_some(client, target, kind, &expected)).await?);
    }
    Ok(differences)
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Rows,
    Keys,
    Counts,
}

/// A row that should be there, or a key that should not.
#[derive(Clone, Copy)]
struct Expected<'c> {
    change: &'c Change,
    row: Option<&'c Row>,
}

/// Compares some, by halves where the database can't read a value as its own type.
async fn compare_some(
    client: &Client,
    target: &Target,
    kind: Kind,
    expected: &[Expected<'_>],
) -> Result<Vec<Difference>, AgentError> {
    if expected.is_empty() {
        return Ok(Vec::new());
    }
    let text = match kind {
        Kind::Rows => sql::expected(target, Compared::Row),
        Kind::Keys => sql::unexpected(target),
        Kind::Counts => sql::counts(target),
    };
    let answers = match run(client, target, &text, expected).await {
        Ok(answers) => answers,
        Err(error) if error.disposition() != Disposition::Row => return Err(error),
        Err(_) => {
            return match expected {
                [one] => unreadable(client, target, kind, *one).await,
                several => {
                    let (left, right) = several.split_at(several.len() / 2);
                    let mut differences = Box::pin(compare_some(client, target, kind, left)).await?;
                    differences.extend(Box::pin(compare_some(client, target, kind, right)).await?);
                    Ok(differences)
                }
            };
        }
    };
    Ok(answers
        .iter()
        .filter_map(|answer| {
            let one = expected.get(usize::try_from(answer.get::<_, i64>("ord")).ok()?.checked_sub(1)?)?;
            difference(target, kind, one, answer)
        })
        .collect())
}

async fn run(
    client: &Client,
    target: &Target,
    text: &StatementText,
    expected: &[Expected<'_>],
) -> Result<Vec<Answer>, AgentError> {
    let rows: Vec<&Row> = expected.iter().filter_map(|one| one.row).collect();
    let keys: Vec<&Key> = expected.iter().map(|one| &one.change.key).collect();
    let counts: Vec<String> = expected
        .iter()
        .map(|one| match one.change.operation {
            Operation::Count { rows, .. } => rows.to_string(),
            _ => String::new(),
        })
        .collect();
    let parameters = text.parameters.iter().map(|parameter| match *parameter {
        Parameter::Column(column) | Parameter::OldColumn(column) => TextArray::Column { rows: &rows, column },
        Parameter::KeyPart(part) | Parameter::NewKeyPart(part) => TextArray::KeyPart { keys: &keys, part },
        Parameter::Count => TextArray::Texts(&counts),
    });
    let failed = |source| AgentError::from_driver("compare rows", Some(&target.relation.table), source);
    let statement = client.prepare(&text.sql).await.map_err(failed)?;
    let answers = pin!(client.query_raw(&statement, parameters).await.map_err(failed)?);
    answers.try_collect().await.map_err(failed)
}

fn difference(target: &Target, kind: Kind, expected: &Expected<'_>, answer: &Answer) -> Option<Difference> {
    let key = expected.change.key.clone();
    let stored_key = || {
        let parts: Vec<Option<String>> = answer.try_get("key").ok()?;
        let parts: Option<Vec<_>> = parts.into_iter().map(|part| part.map(Into::into)).collect();
        Some(Key(parts?.into()))
    };
    Some(match (kind, &expected.change.operation) {
        (Kind::Counts, Operation::Count { row, rows }) => {
            let present = answer.get::<_, i64>("present").unsigned_abs();
            Difference {
                key,
                row: Some(row.clone()),
                kind: if present < *rows {
                    DifferenceKind::Missing(rows - present)
                } else {
                    DifferenceKind::Extra(present - rows)
                },
            }
        }
        (Kind::Counts, _) => return None,
        (Kind::Keys, _) => Difference {
            key: stored_key().unwrap_or(key),
            row: None,
            kind: DifferenceKind::Extra(1),
        },
        (Kind::Rows, _) if !answer.get::<_, bool>("present") => Difference {
            key,
            row: None,
            kind: DifferenceKind::Missing(1),
        },
        (Kind::Rows, _) => {
            let differs: Vec<bool> = answer.get("differs");
            let columns = target.relation.columns.iter().zip(differs);
            Difference {
                key: stored_key().unwrap_or(key),
                row: None,
                kind: DifferenceKind::Columns(
                    columns
                        .filter(|(_, differs)| *differs)
                        .map(|(name, _)| Arc::clone(name))
                        .collect(),
                ),
            }
        }
    })
}

/// A row of which the database can't read a value as its own type, so that it holds another one, or none.
async fn unreadable(
    client: &Client,
    target: &Target,
    kind: Kind,
    expected: Expected<'_>,
) -> Result<Vec<Difference>, AgentError> {
    let missing = |rows| Difference {
        key: expected.change.key.clone(),
        row: None,
        kind: DifferenceKind::Missing(rows),
    };
    match (kind, &expected.change.operation) {
        // No row has such a key.
        (Kind::Keys, _) => return Ok(Vec::new()),
        (Kind::Counts, Operation::Count { row, rows }) => {
            return Ok(vec![Difference {
                row: Some(row.clone()),
                ..missing(*rows)
            }]);
        }
        (Kind::Counts | Kind::Rows, _) => {}
    }
    match run(client, target, &sql::unexpected(target), &[expected]).await {
        Ok(found) if !found.is_empty() => {}
        Err(error) if error.disposition() != Disposition::Row => return Err(error),
        Ok(_) | Err(_) => return Ok(vec![missing(1)]),
    }
    let mut columns = Vec::new();
    for (index, name) in target.relation.columns.iter().enumerate() {
        match run(
            client,
            target,
            &sql::expected(target, Compared::Column(index)),
            &[expected],
        )
        .await
        {
            Ok(same) if same.is_empty() => {}
            Err(error) if error.disposition() != Disposition::Row => return Err(error),
            Ok(_) | Err(_) => columns.push(Arc::clone(name)),
        }
    }
    Ok(vec![Difference {
        key: expected.change.key.clone(),
        row: None,
        kind: DifferenceKind::Columns(columns),
    }])
}
