//! The keys of a table in the Agent DB, page by page in the Agent DB's order.

use bytes::Bytes;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::condition::optional_condition_sql;
use super::error::AgentError;
use crate::change::{Key, Relation};
use crate::postgres::Condition;
use crate::postgres::keys::{execute_with_operators, operator_schemas};
use crate::postgres::quote::{quote_columns, where_clause};
use crate::postgres::row_digest::widest;
use crate::retry::Disposition;

/// One table's keys in the Agent DB.
#[derive(Debug)]
pub struct AgentKeys<'a> {
    agent: &'a Client,
    relation: &'a Relation,
    /// The table as it stands in FROM: not the rows of tables that inherit from it.
    table: String,
    /// Types of the key's columns, for casts.
    types: Vec<String>,
    /// For each of them, the collation of the column as a COLLATE clause, or nothing.
    collations: Vec<String>,
    /// Schemas of the operators of its unique indexes, `pg_catalog` left out.
    operators: Vec<String>,
    /// The condition on the rows whose keys are read, as SQL.
    filter: Option<String>,
}

impl<'a> AgentKeys<'a> {
    /// Reads how the table's keys are compared. `condition`: only keys of rows that meet it are read.
    ///
    /// # Errors
    /// A statement failed, or the condition names a column that the table does not have here.
    pub async fn of(
        agent: &'a Client,
        relation: &'a Relation,
        condition: Option<&Condition>,
    ) -> Result<Self, AgentError> {
        let table = relation.table.regclass();
        let names: Vec<&str> = relation.key_columns().collect();
        let types = agent
            .query(
                "SELECT pg_catalog.format_type(a.atttypid, -1) AS type, \
                     CASE WHEN c.oid IS NULL THEN '' ELSE pg_catalog.format(' COLLATE %I.%I', m.nspname, c.collname) END AS collation \
                 FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY n(name, ord) \
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = $1::text::regclass AND a.attname = n.name \
                 LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation \
                 LEFT JOIN pg_catalog.pg_namespace m ON m.oid = c.collnamespace ORDER BY n.ord",
                &[&table, &names],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the key's types", Some(&relation.table), source))?;
        let operators = agent
            .query_one(
                &format!(
                    "SELECT {}, (SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = $1::text::regclass) AS partitioned",
                    operator_schemas("$1::text::regclass")
                ),
                &[&table],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the key's operators", Some(&relation.table), source))?;
        let filter = optional_condition_sql(agent, relation, condition).await?;
        let partitioned: bool = operators.get("partitioned");
        Ok(Self {
            agent,
            relation,
            table: if partitioned { table } else { format!("ONLY {table}") },
            collations: types.iter().map(|row| row.get("collation")).collect(),
            types: (types.iter())
                .map(|row| row.get::<_, String>("type"))
                .map(|kind| widest(&kind).map_or(kind, str::to_owned))
                .collect(),
            operators: operators.get(0),
            filter,
        })
    }

    /// Types of the key's columns, in key order, without length; the largest one of integers.
    #[must_use]
    pub fn types(&self) -> &[String] {
        &self.types
    }

    /// The page of keys after a key.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn page(&self, after: Option<&Key>, limit: u32) -> Result<Vec<Key>, AgentError> {
        self.page_upto(after, None, limit).await
    }

    /// The same, up to and with another key.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn page_upto(&self, after: Option<&Key>, upto: Option<&Key>, limit: u32) -> Result<Vec<Key>, AgentError> {
        let names = quote_columns("t", self.relation.key_columns());
        let mut filters: Vec<String> = self.filter.iter().cloned().collect();
        let mut parameters = Vec::new();
        for (bound, operator) in [(after, ">"), (upto, "<=")] {
            let Some(bound) = bound else { continue };
            let casts: Vec<_> = self
                .types
                .iter()
                .enumerate()
                .map(|(index, kind)| format!("${}::text::{kind}", parameters.len() + index + 1))
                .collect();
            filters.push(format!("({}) {operator} ({})", names.join(", "), casts.join(", ")));
            parameters.extend(bound.texts());
        }
        let sql = format!(
            "DECLARE page NO SCROLL CURSOR FOR SELECT {list} FROM {} t {} ORDER BY {list} LIMIT {limit}",
            self.table,
            where_clause(&filters),
            list = names.join(", "),
        );
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            parameters.iter().map(|value| value as _).collect();
        let read = async {
            self.agent.batch_execute("BEGIN READ ONLY").await?;
            execute_with_operators(self.agent, &self.operators, &sql, &parameters).await?;
            let messages = self.agent.simple_query("FETCH ALL FROM page").await;
            self.agent.batch_execute("COMMIT").await?;
            messages
        };
        let messages = read
            .await
            .map_err(|source| AgentError::from_driver("read a page of keys", Some(&self.relation.table), source))?;
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    let parts = (0..names.len()).map(|part| match row.try_get(part) {
                        Ok(Some(text)) => Some(Bytes::copy_from_slice(text.as_bytes())),
                        _ => None,
                    });
                    let key = parts.collect::<Option<_>>().map(Key);
                    Some(key.ok_or_else(|| AgentError::KeyEncoding {
                        table: self.relation.table.clone(),
                    }))
                }
                _ => None,
            })
            .collect()
    }

    /// The positions of the pairs whose keys are two here, by the comparison of the table's columns. Where the database can't read
    /// one of a pair as the column's type, nothing is said.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn apart(&self, pairs: &[(Key, Key)]) -> Result<Vec<usize>, AgentError> {
        let mut apart = Vec::new();
        // By halves, as a key that can't be read fails the statement.
        let mut open = vec![(0, pairs.len())];
        while let Some((start, end)) = open.pop() {
            let some = pairs.get(start..end).unwrap_or_default();
            if some.is_empty() {
                continue;
            }
            match self.apart_of(some).await {
                Ok(places) => apart.extend(places.into_iter().map(|place| start + place)),
                Err(error) if error.disposition() != Disposition::Row => return Err(error),
                Err(_) if some.len() == 1 => {}
                Err(_) => {
                    let middle = start + some.len() / 2;
                    open.extend([(start, middle), (middle, end)]);
                }
            }
        }
        Ok(apart)
    }

    async fn apart_of(&self, pairs: &[(Key, Key)]) -> Result<Vec<usize>, AgentError> {
        let parts = self.types.len();
        let (mut arrays, mut names, mut same) = (Vec::new(), Vec::new(), Vec::new());
        for (part, (kind, collation)) in self.types.iter().zip(&self.collations).enumerate() {
            let (one, other) = (part + 1, parts + part + 1);
            same.push(format!("k.__{one}::{kind}{collation} = k.__{other}::{kind}"));
        }
        for parameter in 1..=2 * parts {
            arrays.push(format!("pg_catalog.unnest(${parameter}::text[])"));
            names.push(format!("__{parameter}"));
        }
        let sql = format!(
            "DECLARE apart NO SCROLL CURSOR FOR SELECT k.__place FROM ROWS FROM ({}) WITH ORDINALITY AS k({}, __place) \
             WHERE NOT ({})",
            arrays.join(", "),
            names.join(", "),
            same.join(" AND "),
        );
        let texts = |part: usize, of: fn(&(Key, Key)) -> &Key| -> Vec<String> {
            let keys = pairs.iter().map(of);
            keys.map(|key| key.texts().get(part).cloned().unwrap_or_default())
                .collect()
        };
        let parameters: Vec<Vec<String>> = (0..parts)
            .map(|part| texts(part, |pair| &pair.0))
            .chain((0..parts).map(|part| texts(part, |pair| &pair.1)))
            .collect();
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            parameters.iter().map(|value| value as _).collect();
        self.agent
            .batch_execute("BEGIN READ ONLY")
            .await
            .map_err(|error| self.failed(error))?;
        let read = async {
            execute_with_operators(self.agent, &self.operators, &sql, &parameters).await?;
            self.agent.simple_query("FETCH ALL FROM apart").await
        };
        let read = read.await;
        // After an error it ends the transaction too.
        let ended = self.agent.batch_execute("COMMIT").await;
        let messages = read.map_err(|error| self.failed(error))?;
        ended.map_err(|error| self.failed(error))?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse::<usize>().ok()?.checked_sub(1),
                _ => None,
            })
            .collect())
    }

    fn failed(&self, source: tokio_postgres::Error) -> AgentError {
        AgentError::from_driver("compare keys", Some(&self.relation.table), source)
    }
}
