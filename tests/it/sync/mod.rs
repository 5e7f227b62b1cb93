//! The daemon end to end: two real databases, the real binary.

mod basics;
mod convergence;
mod copying;
mod gap;
mod joining;
mod kills;
mod oracle;
mod program;
mod resync;
mod setup;
mod spelling;
mod systemic;
mod unseen;

use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ConfigFile, Databases, Process, SOON, differing_tables, eventually, eventually_equal};

/// Waits until the tables are equal in both databases, and fails with those that are not.
pub(crate) async fn until_equal(db: &Databases, tables: &[&str], deadline: Duration) {
    eventually_equal("the tables are equal", deadline, Vec::<String>::new(), || {
        differing_tables(&db.site, &db.agent, tables)
    })
    .await;
}

/// Starts `twinlog sync` and waits until the stream flows.
pub(crate) async fn start_sync(config: &ConfigFile) -> Process {
    let mut process = Process::start(config, &["sync"], "");
    process
        .wait_for_output("the stream flows", Duration::from_secs(30))
        .await;
    process
}

/// Creates the same schema on both sides.
pub(crate) async fn on_both(db: &Databases, sql: &str) {
    db.site.batch_execute(sql).await.unwrap();
    db.agent.batch_execute(sql).await.unwrap();
}

/// A configuration of the daemon for tests: quick retries.
pub(crate) fn quick(db: &Databases) -> ConfigFile {
    ConfigFile::new(
        db,
        "[sync]\nretry_initial_ms = 50\nretry_max_ms = 500\nreconnect_max_ms = 500\n",
    )
}

/// The sum of the accounting over all tables: (received, accounted for).
pub(crate) async fn accounting(db: &Databases) -> (i64, i64) {
    let row = db
        .agent
        .query_one(
            "SELECT coalesce(sum(received), 0)::bigint, \
             coalesce(sum(applied + unchanged + superseded + filtered + parked), 0)::bigint FROM twinlog.accounting",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

/// How many rows are parked.
pub(crate) async fn parked(db: &Databases) -> i64 {
    db.agent
        .query_one("SELECT count(*) FROM twinlog.failed_rows", &[])
        .await
        .unwrap()
        .get(0)
}

/// Runs a command of the binary to its end: its status and all that it printed.
pub(crate) async fn command(config: &ConfigFile, arguments: &[&str]) -> (ExitStatus, String) {
    let mut process = Process::start(config, arguments, "");
    let status = process.wait(2 * SOON).await;
    (status, process.output())
}

/// What an admin route answers: the status code and the body; `None` where nobody listens.
pub(crate) async fn admin(config: &ConfigFile, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", config.admin_port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Waits until the daemon's metrics name a state, and no other.
pub(crate) async fn until_state(config: &ConfigFile, state: &str) {
    let wanted = format!("twinlog_sync_state{{state=\"{state}\"}} 1");
    eventually(&format!("the state is {state}"), 2 * SOON, || async {
        let body = admin(config, "/metrics")
            .await
            .map(|(_, body)| body)
            .unwrap_or_default();
        let states: Vec<String> = body
            .lines()
            .filter(|line| line.starts_with("twinlog_sync_state{") && line.ends_with(" 1"))
            .map(str::to_owned)
            .collect();
        if states == [wanted.clone()] {
            Ok(())
        } else {
            Err(states)
        }
    })
    .await;
}

/// Waits until a table's copy is in a state, with so many rows copied at least.
pub(crate) async fn until_table(db: &Databases, table: &str, state: &str, rows: i64) {
    eventually(&format!("{table} is {state} with {rows} row(s)"), 2 * SOON, || async {
        let row = db
            .agent
            .query_opt(
                "SELECT state, rows_copied FROM twinlog.tables WHERE table_name = $1",
                &[&table],
            )
            .await
            .map_err(|error| error.to_string())?;
        let seen = row.map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1)));
        if seen
            .as_ref()
            .is_some_and(|(now, copied)| now == state && *copied >= rows)
        {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
}

/// The identity that holds for every transaction: received = applied + unchanged + superseded + filtered + parked.
pub(crate) async fn balanced(db: &Databases) {
    let (received, accounted) = accounting(db).await;
    assert_eq!(received, accounted);
}
