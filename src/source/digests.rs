//! Digests of ranges of a table's rows: the Site DB's side of [`row_digest`](crate::postgres::row_digest).

use bytes::Bytes;
use tokio_postgres::types::ToSql;

use super::chunks::Source;
use super::error::{SourceError, failed};
use super::table::{SourceTable, key_columns};
use crate::change::{Key, Relation};
use crate::postgres::row_digest::{Digest, DigestedColumn, DigestedKey, DigestedTable};

impl SourceTable {
    /// How ranges of it are digested.
    ///
    /// # Errors
    /// The row filter can't be one.
    pub fn digested(&self, relation: &Relation) -> Result<DigestedTable, SourceError> {
        Ok(DigestedTable {
            table: self.from(),
            columns: (relation.columns.iter())
                .map(|name| {
                    let at = self.columns.iter().position(|column| column == name);
                    let kind = at.and_then(|at| self.types.get(at));
                    DigestedColumn::new(name, kind.map_or("", String::as_str))
                })
                .collect(),
            key: (key_columns(self, relation).into_iter())
                .map(|(name, kind)| DigestedKey {
                    name,
                    cast: kind.clone(),
                    kind,
                })
                .collect(),
            filters: self.filters(None)?,
        })
    }
}

impl Source {
    /// The encoding in which the database stores texts.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn encoding(&self) -> Result<String, SourceError> {
        let row = self
            .client()
            .query_one("SELECT pg_catalog.current_setting('server_encoding') AS encoding", &[])
            .await
            .map_err(failed("read the encoding"))?;
        Ok(row.get("encoding"))
    }

    /// The digest of the rows after a key, up to and with another one.
    ///
    /// # Errors
    /// The statement's or the connection's; or another table has the name by now.
    pub async fn digest(
        &self,
        of: &SourceTable,
        table: &DigestedTable,
        after: Option<&Key>,
        upto: Option<&Key>,
    ) -> Result<Digest, SourceError> {
        let mut texts = texts(after, upto);
        texts.push(of.table.regclass());
        // Of the same statement: it holds a lock, so that the name stays the table's.
        let sql = format!(
            "SELECT d.rows, d.sum, pg_catalog.to_regclass(${}::text)::oid AS relation_id FROM ({}) d",
            texts.len(),
            table.digest(after.is_some(), upto.is_some()),
        );
        let row = self
            .client()
            .query_one(&sql, &parameters(&texts))
            .await
            .map_err(failed("read a digest"))?;
        if row.get::<_, Option<u32>>("relation_id") != Some(of.id.0) {
            return Err(SourceError::Replaced(of.table.clone()));
        }
        Ok(Digest {
            rows: row.get("rows"),
            sum: row.get("sum"),
        })
    }

    /// The last key of the range of so many rows after a key; `None` where there are not so many up to another one.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn bound(
        &self,
        table: &DigestedTable,
        after: Option<&Key>,
        upto: Option<&Key>,
        rows: u64,
    ) -> Result<Option<Key>, SourceError> {
        let texts = texts(after, upto);
        let row = self
            .client()
            .query_opt(&table.bound(after.is_some(), upto.is_some(), rows), &parameters(&texts))
            .await
            .map_err(failed("read the bound of a range"))?;
        Ok(row.map(|row| {
            let parts: Vec<String> = row.get("key");
            Key(parts.into_iter().map(Bytes::from).collect())
        }))
    }
}

fn texts(after: Option<&Key>, upto: Option<&Key>) -> Vec<String> {
    after.into_iter().chain(upto).flat_map(Key::texts).collect()
}

fn parameters(texts: &[String]) -> Vec<&(dyn ToSql + Sync)> {
    texts.iter().map(|text| text as _).collect()
}
