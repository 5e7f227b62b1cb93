//! `twinlog.tables`, columns `source_…`: what a table was on the Site DB when its copy began. By that a start sees that the
//! table has become another one while no daemon ran.

use std::collections::BTreeMap;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// A table of the Site DB, as far as a stream that goes on over its changes would miss rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its OID: one that was dropped and created anew has another.
    pub oid: u32,
    /// By what it is a member of the publication, and what that sends: a table that was taken out and put back has another
    /// entry, and missed the changes between.
    pub membership: String,
    /// Its published columns with their types.
    pub columns: Vec<String>,
    /// The publication's row filter.
    pub row_filter: Option<String>,
}

impl Shape {
    /// Why rows that were copied under this shape do not do under the new one; `None` where they do. Columns that went
    /// take nothing away; one that came (or changed its type) has values that no change brought.
    #[must_use]
    pub fn outdated_by(&self, now: &Self) -> Option<&'static str> {
        if self.oid != now.oid {
            Some("it was created anew")
        } else if self.membership != now.membership {
            Some("it left the publication for a while, or the publication sends other changes")
        } else if self.row_filter != now.row_filter {
            Some("its row filter is another one")
        } else if now.columns.iter().any(|column| !self.columns.contains(column)) {
            Some("it has another column, or one of another type")
        } else {
            None
        }
    }
}

impl Control {
    /// The shapes that are known.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn shapes(&self) -> Result<BTreeMap<TableName, Shape>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, source_oid, coalesce(source_membership, '') AS source_membership,
                     coalesce(source_columns, '{}') AS source_columns, source_filter
                 FROM twinlog.tables WHERE slot = $1 AND source_oid IS NOT NULL",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the tables' shapes"))?;
        Ok(rows
            .iter()
            .map(|row| {
                let shape = Shape {
                    oid: row.get("source_oid"),
                    membership: row.get("source_membership"),
                    columns: row.get("source_columns"),
                    row_filter: row.get("source_filter"),
                };
                (
                    TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
                    shape,
                )
            })
            .collect())
    }

    /// Remembers the shape of a table that has its row.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn remember_shape(&self, table: &TableName, shape: &Shape) -> Result<(), AgentError> {
        self.client
            .execute(
                "UPDATE twinlog.tables SET source_oid = $4, source_membership = $5, source_columns = $6,
                     source_filter = $7
                 WHERE slot = $1 AND schema_name = $2 AND table_name = $3",
                &[
                    &self.slot,
                    &&*table.schema,
                    &&*table.name,
                    &shape.oid,
                    &shape.membership,
                    &shape.columns,
                    &shape.row_filter,
                ],
            )
            .await
            .map_err(failed("remember a table's shape"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            oid: 7,
            membership: "1:2:tttt".to_owned(),
            columns: vec!["id bigint".to_owned(), "n int".to_owned()],
            row_filter: None,
        }
    }

    #[test]
    fn only_what_makes_a_stream_miss_rows_outdates_a_copy() {
        let outdated = |change: fn(&mut Shape)| {
            let mut now = shape();
            change(&mut now);
            shape().outdated_by(&now).is_some()
        };
        assert!(outdated(|now| now.oid = 8));
        assert!(outdated(|now| now.membership = "1:3:tttt".to_owned()));
        assert!(outdated(|now| now.row_filter = Some("(n > 0)".to_owned())));
        assert!(outdated(|now| now.columns.push("more text".to_owned())));
        assert!(outdated(|now| now.columns[1] = "n bigint".to_owned()));
        assert!(!outdated(|now| now.columns.reverse()), "the order is nothing");
        assert!(!outdated(|now| now.columns.truncate(1)), "less is there already");
        assert!(!outdated(|_| {}));
    }
}
