//! Whether two databases hold the same rows.

use tokio_postgres::Client;

/// The number of rows of a table (`schema.table`, as it would stand in SQL) and an MD5 over their ordered text forms.
/// Columns are taken in the order of their names: two sides may have made them in another order.
async fn table_digest(client: &Client, table: &str) -> (i64, String) {
    let columns: String = client
        .query_one(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname COLLATE \"C\") FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            &[&table],
        )
        .await
        .unwrap()
        .get(0);
    let row = client
        .query_one(
            &format!(
                "SELECT count(*), coalesce(md5(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\")), '')
                 FROM (SELECT ROW({columns})::text AS line FROM {table}) AS lines"
            ),
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
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
    let lines = format!("SELECT t::text FROM {table} AS t");
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
        left.0,
        right.0,
        only(&left_rows, &right_rows),
        only(&right_rows, &left_rows),
    );
}

/// Those of `tables` that differ between the two databases, for use with `eventually_equal`.
pub(crate) async fn differing_tables(site: &Client, agent: &Client, tables: &[&str]) -> Vec<String> {
    let mut differing = Vec::new();
    for table in tables {
        if table_digest(site, table).await != table_digest(agent, table).await {
            differing.push((*table).to_owned());
        }
    }
    differing
}

async fn lines_of(client: &Client, query: &str) -> Vec<String> {
    client
        .query(query, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}
