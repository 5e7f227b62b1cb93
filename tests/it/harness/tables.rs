//! Whether two databases hold the same rows, and what the daemon's own tables in the Agent DB say about them.

use std::time::Duration;

use tokio_postgres::Client;

use super::databases::Databases;
use super::wait::{SOON, eventually, eventually_equal, eventually_is};

/// What stands for a table's rows: columns are taken in the order of their names, since two sides may have made them in
/// another order, and rows in the order of their texts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digest {
    rows: i64,
    md5: String,
}

/// The digest of a table (`schema.table`, as it would stand in SQL).
async fn table_digest(client: &Client, table: &str) -> Digest {
    let columns: String = client
        .query_one(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname COLLATE \"C\") AS columns FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            &[&table],
        )
        .await
        .unwrap_or_else(|error| panic!("{table}: {error:?}"))
        .get("columns");
    let row = client
        .query_one(
            &format!(
                "SELECT count(*) AS rows, coalesce(md5(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\")), '') AS md5
                 FROM (SELECT ROW({columns})::text AS line FROM {table}) AS lines"
            ),
            &[],
        )
        .await
        .unwrap_or_else(|error| panic!("{table}: {error:?}"));
    Digest {
        rows: row.get("rows"),
        md5: row.get("md5"),
    }
}

/// A table that is not the same on both sides.
struct Difference {
    table: String,
    site: Digest,
    agent: Digest,
}

impl std::fmt::Debug for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, site, agent } = self;
        write!(
            f,
            "{table}: {} row(s) on the site, {} on the agent",
            site.rows, agent.rows
        )?;
        if site.rows == agent.rows {
            write!(f, ", not the same ones")?;
        }
        Ok(())
    }
}

async fn differences(site: &Client, agent: &Client, tables: &[&str]) -> Vec<Difference> {
    let mut differences = Vec::new();
    for table in tables {
        let (site, agent) = tokio::join!(table_digest(site, table), table_digest(agent, table));
        if site != agent {
            differences.push(Difference {
                table: (*table).to_owned(),
                site,
                agent,
            });
        }
    }
    differences
}

/// The tables that differ between the two databases.
pub(crate) async fn differing_tables(site: &Client, agent: &Client, tables: &[&str]) -> Vec<String> {
    let differences = differences(site, agent, tables).await;
    differences.into_iter().map(|difference| difference.table).collect()
}

/// Waits until the tables are equal in both databases.
///
/// # Panics
/// With those that are not, at the deadline.
pub(crate) async fn until_equal(site: &Client, agent: &Client, tables: &[&str], deadline: Duration) {
    let what = format!("{tables:?} are equal in both databases");
    eventually_is(&what, deadline, || differences(site, agent, tables), Vec::is_empty).await;
}

/// Asserts that a table holds the same rows in both databases.
///
/// # Panics
/// If it does not, with the first rows that only one side has.
pub(crate) async fn assert_same_table(site: &Client, agent: &Client, table: &str) {
    let (left, right) = tokio::join!(table_digest(site, table), table_digest(agent, table));
    if left == right {
        return;
    }
    let lines = format!("SELECT t::text AS line FROM {table} AS t");
    let (left_rows, right_rows) = tokio::join!(lines_of(site, &lines), lines_of(agent, &lines));
    let only = |these: &[String], others: &[String]| -> Vec<String> {
        let others: std::collections::HashSet<&String> = others.iter().collect();
        these
            .iter()
            .filter(|line| !others.contains(line))
            .take(5)
            .cloned()
            .collect()
    };
    panic!(
        "{table} differs: {} rows on the site, {} on the agent; only on the site {:#?}, only on the agent {:#?}",
        left.rows,
        right.rows,
        only(&left_rows, &right_rows),
        only(&right_rows, &left_rows),
    );
}

/// The sums of the accounting over all tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accounting {
    /// Changes that the stream has delivered.
    pub(crate) received: i64,
    /// Those that were applied, or left out for a reason that is counted.
    pub(crate) accounted: i64,
}

impl Databases {
    /// Waits until the tables are equal in both databases.
    pub(crate) async fn until_equal(&self, tables: &[&str]) {
        self.until_equal_within(SOON, tables).await;
    }

    /// The same with a deadline of the test's own.
    pub(crate) async fn until_equal_within(&self, deadline: Duration, tables: &[&str]) {
        until_equal(&self.site, &self.agent, tables, deadline).await;
    }

    /// Waits until each query gives the same value in both databases.
    pub(crate) async fn until_equal_of(&self, queries: &[&str]) {
        for query in queries {
            let site = self.site.text(query).await;
            eventually_equal(query, SOON, site, || self.agent.text(query)).await;
        }
    }

    /// Waits until this number of rows is parked.
    pub(crate) async fn until_parked(&self, rows: i64) {
        self.until_parked_within(SOON, rows).await;
    }

    /// The same with a deadline of the test's own.
    pub(crate) async fn until_parked_within(&self, deadline: Duration, rows: i64) {
        eventually_equal("so many rows are parked", deadline, rows, || self.parked()).await;
    }

    /// Waits until a query gives this value in the Agent DB.
    pub(crate) async fn until_agent(&self, what: &str, query: &str, value: &str) {
        eventually_equal(what, SOON, Some(value.to_owned()), || self.agent.text(query)).await;
    }

    /// Waits until a query gives this value in the Site DB.
    pub(crate) async fn until_site(&self, what: &str, query: &str, value: &str) {
        eventually_equal(what, SOON, Some(value.to_owned()), || self.site.text(query)).await;
    }

    /// Waits until a table's copy is in this state and has copied at least this number of rows.
    pub(crate) async fn until_table(&self, table: &str, state: &str, rows: i64) {
        let copied = format!("SELECT state, rows_copied FROM twinlog.tables WHERE table_name = '{table}'");
        eventually(&format!("{table} is {state} with {rows} row(s)"), 2 * SOON, || async {
            let row = self
                .agent
                .query_opt(&copied, &[])
                .await
                .map_err(|error| error.to_string())?;
            let seen: Option<(String, i64)> = row.map(|row| (row.get("state"), row.get("rows_copied")));
            match &seen {
                Some((now, copied)) if now == state && *copied >= rows => Ok(()),
                _ => Err(format!("{seen:?}")),
            }
        })
        .await;
    }

    /// How many rows are parked.
    pub(crate) async fn parked(&self) -> i64 {
        let parked = self.agent.value("SELECT count(*) FROM twinlog.failed_rows").await;
        parked.parse().unwrap()
    }

    /// The accounting of the changes that the stream has delivered.
    pub(crate) async fn accounting(&self) -> Accounting {
        let row = self
            .agent
            .query_one(
                "SELECT coalesce(sum(received), 0)::bigint AS received,
                        coalesce(sum(applied + unchanged + superseded + filtered + parked + held), 0)::bigint AS accounted
                 FROM twinlog.accounting",
                &[],
            )
            .await
            .unwrap();
        Accounting {
            received: row.get("received"),
            accounted: row.get("accounted"),
        }
    }

    /// Asserts the identity that holds for every transaction: received = applied + unchanged + superseded + filtered +
    /// parked + held.
    pub(crate) async fn assert_balanced(&self) {
        let Accounting { received, accounted } = self.accounting().await;
        assert_eq!(received, accounted, "changes received and accounted for");
    }
}

async fn lines_of(client: &Client, query: &str) -> Vec<String> {
    client
        .query(query, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get("line"))
        .collect()
}
