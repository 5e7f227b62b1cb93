//! The end of the demo: nothing is missing, anywhere, or what is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::{EXPIRED, PATIENCE, Stage};
use crate::cli::Outcome;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Compares both databases, table by table, and the Site DB with the simulator's ledger; prints what it finds.
pub(super) async fn prove(stage: &Stage) -> anyhow::Result<Outcome> {
    let mut differences = equal_tables(stage).await?;
    differences.extend(equal_ledger(stage).await?);
    differences.extend(all_received(stage).await?);
    differences.extend(no_lag(stage).await?);
    if differences.is_empty() {
        stage.screen.say(format!(
            "{GOOD}proved{GOOD:#}: both databases are equal, the ledger matches, nothing is behind"
        ));
        return Ok(Outcome::Success);
    }
    for difference in differences {
        stage.screen.say(format!("{BAD}differs{BAD:#}: {difference}"));
    }
    Ok(Outcome::Problem)
}

/// Rows and a checksum over all of them in the order of the key.
async fn digest(client: &Client, table: &str) -> Result<(i64, String), tokio_postgres::Error> {
    let sql = format!(
        "SELECT count(*), coalesce(md5(string_agg(md5(t::text), '' ORDER BY t.id)), '-') FROM public.{table} t"
    );
    let row = client.query_one(&sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

async fn equal_tables(stage: &Stage) -> anyhow::Result<Vec<String>> {
    // What is to be synchronised, not what the daemon says that it synchronises.
    let tables: Vec<String> = stage
        .site
        .query(
            "SELECT DISTINCT tablename::text FROM pg_catalog.pg_publication_tables WHERE schemaname = 'public' ORDER BY 1",
            &[],
        )
        .await
        .context("list the published tables")?
        .iter()
        .map(|row| row.get(0))
        .collect();
    stage.screen.say("");
    stage
        .screen
        .say(format!("{:<24} {:>9} {:>9}  checksum", "table", "Site DB", "Agent DB"));
    let deadline = Instant::now() + PATIENCE;
    let mut differences = Vec::new();
    for table in &tables {
        // The last changes may still be on their way.
        let (site, agent) = loop {
            let (site, agent) = tokio::try_join!(digest(&stage.site, table), digest(&stage.agent, table))?;
            if site == agent || Instant::now() >= deadline {
                break (site, agent);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        let verdict = if site == agent {
            format!("{} {GOOD}equal{GOOD:#}", &site.1[..site.1.len().min(12)])
        } else {
            differences.push(format!(
                "table {table}: {} row(s) in the Site DB, {} in the Agent DB",
                site.0, agent.0
            ));
            format!("{BAD}differs{BAD:#}")
        };
        stage
            .screen
            .say(format!("{table:<24} {:>9} {:>9}  {verdict}", site.0, agent.0));
    }
    if tables.is_empty() {
        differences.push("no table is published".to_owned());
    }
    Ok(differences)
}

/// Rank of a status as it is shown: what the ledger reported last in this order is what the row must say.
fn rank(status: &str) -> usize {
    ["accepted", "sent", "failed", "delivered", "read", "played"]
        .iter()
        .position(|known| *known == status)
        .unwrap_or(0)
}

async fn equal_ledger(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let ledger = stage.simulator.ledger();
    let mut differences: Vec<String> = ledger
        .duplicates()
        .into_iter()
        .map(|opaque| format!("message {opaque} was sent twice"))
        .collect();
    let rows = stage
        .site
        .query(
            "SELECT m.wamid, m.status, a.phone_number_id, m.id::text FROM public.whatsapp_messages m \
             JOIN public.whatsapp_accounts a ON a.id = m.account_id WHERE m.direction = 'outbound'",
            &[],
        )
        .await
        .context("read the outbound messages")?;
    let mut by_wamid: HashMap<String, String> = HashMap::new();
    let mut waiting = 0_usize;
    for row in &rows {
        let (wamid, status, number): (Option<String>, String, String) = (row.get(0), row.get(1), row.get(2));
        match wamid {
            Some(wamid) => {
                by_wamid.insert(wamid, status);
            }
            None if number == EXPIRED && status == "pending" => waiting += 1,
            None => differences.push(format!(
                "message {} is {status} and has no wamid",
                row.get::<_, String>(3)
            )),
        }
    }
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for message in &ledger.messages {
        let reported = message
            .statuses
            .iter()
            .map(|reported| reported.status.as_str())
            .max_by_key(|status| rank(status));
        let expected = reported.unwrap_or("accepted");
        match by_wamid.remove(&message.wamid) {
            None => differences.push(format!("{} was sent and is not recorded", message.wamid)),
            Some(status) if status == expected => *statuses.entry(expected).or_default() += 1,
            Some(status) => differences.push(format!("{} is {status}, Meta reported {expected}", message.wamid)),
        }
    }
    differences.extend(
        by_wamid
            .keys()
            .map(|wamid| format!("{wamid} is recorded and was never sent")),
    );
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

/// Each message that somebody wrote is a row, exactly once. Unlike a status, such a message has no second chance: an event that
/// was answered with 200 and lost would show here and nowhere else.
async fn all_received(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let ledger = stage.simulator.ledger();
    let written: BTreeSet<String> = ledger.received.iter().cloned().collect();
    let deadline = Instant::now() + PATIENCE;
    let stored: BTreeSet<String> = loop {
        let rows = stage
            .site
            .query(
                "SELECT coalesce(wamid, id::text) FROM public.whatsapp_messages WHERE direction = 'inbound'",
                &[],
            )
            .await
            .context("read the inbound messages")?;
        let stored: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        // The last events may still be on their way.
        if written.is_subset(&stored) || Instant::now() >= deadline {
            break stored;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
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

/// The daemon's own word must agree: nothing behind, nothing parked.
async fn no_lag(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = stage
            .agent
            .query_one(
                "SELECT (report ->> 'delay_seconds')::float8, (report ->> 'failed_rows')::bigint, state FROM twinlog.daemon",
                &[],
            )
            .await
            .context("read the daemon's state")?;
        let (delay, parked, state): (Option<f64>, Option<i64>, String) = (row.get(0), row.get(1), row.get(2));
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
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}
