//! The end of the demo: compares both databases, and the Site DB with the simulator's ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use tokio::time::Instant;

use super::stage::{EXPIRED, PATIENCE, POLL, Stage};
use crate::postgres::Client;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Prints what it compares and what differs, and returns the latter.
pub(super) async fn prove(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let mut differences = different_tables(stage).await?;
    differences.extend(different_sends(stage).await?);
    differences.extend(different_receipts(stage).await?);
    differences.extend(remaining_lag(stage).await?);
    if differences.is_empty() {
        stage.screen.say(format!(
            "{GOOD}proved{GOOD:#}: both databases are equal, the ledger matches, nothing is behind"
        ));
    }
    for difference in &differences {
        stage.screen.say(format!("{BAD}differs{BAD:#}: {difference}"));
    }
    Ok(differences)
}

/// A table's content, as far as it is compared.
#[derive(PartialEq, Eq)]
struct Content {
    rows: i64,
    /// Over all rows in the order of the key.
    checksum: String,
}

async fn content(client: &Client, table: &str) -> anyhow::Result<Content> {
    let sql = format!(
        "SELECT count(*) AS rows, coalesce(md5(string_agg(md5(t::text), '' ORDER BY t.id)), '-') AS checksum \
         FROM public.{table} t"
    );
    let row = client.query_one(&sql, &[]).await?;
    Ok(Content {
        rows: row.get("rows"),
        checksum: row.get("checksum"),
    })
}

/// Compares both databases, table by table.
async fn different_tables(stage: &Stage) -> anyhow::Result<Vec<String>> {
    // The tables of the publication, not those that the daemon says that it replicates.
    let tables: Vec<String> = stage
        .site
        .query(
            "SELECT DISTINCT tablename::text FROM pg_catalog.pg_publication_tables WHERE schemaname = 'public' ORDER BY 1",
            &[],
        )
        .await
        .context("list the published tables")?
        .iter()
        .map(|row| row.get("tablename"))
        .collect();
    stage.screen.say("");
    stage
        .screen
        .say(format!("{:<24} {:>9} {:>9}  checksum", "table", "Site DB", "Agent DB"));
    let deadline = Instant::now() + PATIENCE;
    let mut differences = Vec::new();
    for table in &tables {
        let (site, agent) = contents(stage, table, deadline).await?;
        let verdict = if site == agent {
            format!("{} {GOOD}equal{GOOD:#}", &site.checksum[..site.checksum.len().min(12)])
        } else {
            differences.push(format!(
                "table {table}: {} row(s) in the Site DB, {} in the Agent DB",
                site.rows, agent.rows
            ));
            format!("{BAD}differs{BAD:#}")
        };
        stage
            .screen
            .say(format!("{table:<24} {:>9} {:>9}  {verdict}", site.rows, agent.rows));
    }
    if tables.is_empty() {
        differences.push("no table is published".to_owned());
    }
    Ok(differences)
}

/// A table's content on both sides: as soon as it is equal, or at the deadline, since the last changes may still be on their
/// way.
async fn contents(stage: &Stage, table: &str, deadline: Instant) -> anyhow::Result<(Content, Content)> {
    loop {
        let (site, agent) = tokio::try_join!(content(&stage.site, table), content(&stage.agent, table))?;
        if site == agent || Instant::now() >= deadline {
            return Ok((site, agent));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How far a status is. A row must show the furthest one that the ledger reported.
fn rank(status: &str) -> usize {
    ["accepted", "sent", "failed", "delivered", "read", "played"]
        .iter()
        .position(|known| *known == status)
        .unwrap_or(0)
}

/// Compares the outbound messages with the ledger: each accepted message is one row, with the status that was reported.
async fn different_sends(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let ledger = stage.simulator.ledger();
    let mut differences: Vec<String> = ledger
        .duplicates()
        .into_iter()
        .map(|opaque| format!("message {opaque} was sent twice"))
        .collect();
    let rows = stage
        .site
        .query(
            "SELECT m.wamid, m.status, a.phone_number_id, m.id::text AS id FROM public.whatsapp_messages m \
             JOIN public.whatsapp_accounts a ON a.id = m.account_id WHERE m.direction = 'outbound'",
            &[],
        )
        .await
        .context("read the outbound messages")?;
    let mut recorded: HashMap<String, String> = HashMap::new();
    let mut waiting = 0_usize;
    for row in &rows {
        let (status, number): (String, &str) = (row.get("status"), row.get("phone_number_id"));
        match row.get::<_, Option<String>>("wamid") {
            Some(wamid) => {
                recorded.insert(wamid, status);
            }
            None if number == EXPIRED && status == "pending" => waiting += 1,
            None => differences.push(format!(
                "message {} is {status} and has no wamid",
                row.get::<_, &str>("id")
            )),
        }
    }
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for message in &ledger.messages {
        let reported = message.statuses.iter().map(|reported| reported.status.as_str());
        let expected = reported.max_by_key(|status| rank(status)).unwrap_or("accepted");
        match recorded.remove(&message.wamid) {
            None => differences.push(format!("{} was sent and is not recorded", message.wamid)),
            Some(status) if status == expected => *statuses.entry(expected).or_default() += 1,
            Some(status) => differences.push(format!("{} is {status}, Meta reported {expected}", message.wamid)),
        }
    }
    let unsent = recorded.keys();
    differences.extend(unsent.map(|wamid| format!("{wamid} is recorded and was never sent")));
    let counts: Vec<String> = statuses
        .iter()
        .map(|(status, count)| format!("{count} {status}"))
        .collect();
    stage.screen.say("");
    stage.screen.say(format!(
        "ledger of the Graph simulator: {} accepted, each recorded once ({}); {waiting} wait for a new token, none lost",
        ledger.messages.len(),
        counts.join(", "),
    ));
    Ok(differences)
}

/// Compares the inbound messages with the ledger: each message that a user wrote is one row. A status that was lost is
/// reported again by the next one, a message is not: this is the only check that would find it.
async fn different_receipts(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let ledger = stage.simulator.ledger();
    let written: BTreeSet<String> = ledger.received.iter().cloned().collect();
    let deadline = Instant::now() + PATIENCE;
    let stored: BTreeSet<String> = loop {
        let rows = stage
            .site
            .query(
                "SELECT coalesce(wamid, id::text) AS id FROM public.whatsapp_messages WHERE direction = 'inbound'",
                &[],
            )
            .await
            .context("read the inbound messages")?;
        let stored: BTreeSet<String> = rows.iter().map(|row| row.get("id")).collect();
        // The last events may still be on their way.
        if written.is_subset(&stored) || Instant::now() >= deadline {
            break stored;
        }
        tokio::time::sleep(POLL).await;
    };
    let missing = written
        .difference(&stored)
        .map(|wamid| format!("{wamid} was received and is not recorded"));
    let invented = stored
        .difference(&written)
        .map(|wamid| format!("{wamid} is recorded and was never received"));
    let differences: Vec<String> = missing.chain(invented).collect();
    stage.screen.say(format!(
        "ledger of what people wrote: {} received, {} recorded",
        written.len(),
        stored.len()
    ));
    Ok(differences)
}

/// What the daemon itself reports must agree: nothing behind, nothing parked.
async fn remaining_lag(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = stage
            .agent
            .query_one(
                "SELECT (report ->> 'delay_seconds')::float8 AS delay, (report ->> 'failed_rows')::bigint AS parked, state \
                 FROM twinlog.daemon",
                &[],
            )
            .await
            .context("read the daemon's state")?;
        let (delay, parked): (Option<f64>, Option<i64>) = (row.get("delay"), row.get("parked"));
        let state: String = row.get("state");
        if delay == Some(0.0) && parked == Some(0) && state == "streaming" {
            stage.screen.say("lag 0 s, 0 rows parked, state streaming");
            return Ok(Vec::new());
        }
        if Instant::now() >= deadline {
            let delay = delay.unwrap_or(f64::NAN);
            return Ok(vec![format!(
                "the daemon is {state}, {delay:.1} s behind, {} row(s) parked",
                parked.unwrap_or(0)
            )]);
        }
        tokio::time::sleep(POLL).await;
    }
}
