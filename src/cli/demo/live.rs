//! What arrives in the Agent DB, as it arrives: one line that changes on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::say;
use crate::agent_db;
use crate::shutdown;

/// How often a terminal is brought up to date, and how often a plain line is worth one.
const TERMINAL: Duration = Duration::from_millis(150);
const PLAIN: Duration = Duration::from_secs(1);

/// The display while it runs.
pub(super) struct Live {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Live {
    pub(super) async fn start(agent_url: &str) -> anyhow::Result<Self> {
        let agent = agent_db::connect(&agent_url.parse()?, "twinlog demo display").await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(show(agent, stop.clone()));
        Ok(Self { stop, task })
    }

    /// Shows the last figures and ends.
    pub(super) async fn end(self) {
        self.stop.cancel();
        // A display that failed has shown what it could.
        let _ = self.task.await;
    }
}

async fn show(agent: Client, stop: CancellationToken) {
    let terminal = std::io::stdout().is_terminal();
    let bar = if terminal {
        let style =
            ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        ProgressBar::new_spinner().with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let mut last = String::new();
    loop {
        let running = shutdown::sleep(if terminal { TERMINAL } else { PLAIN }, &stop).await;
        let Ok(line) = figures(&agent).await else { break };
        if terminal {
            bar.set_message(line.clone());
            bar.tick();
        } else if line != last {
            say(format!("  {line}"));
        }
        last = line;
        if !running {
            break;
        }
    }
    bar.finish_and_clear();
    if terminal {
        say(format!("  {last}"));
    }
}

async fn figures(agent: &Client) -> Result<String, tokio_postgres::Error> {
    let rows = agent
        .query("SELECT status, count(*) FROM public.whatsapp_messages GROUP BY 1", &[])
        .await?;
    let by_status: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    // A message that was read was delivered, and one that was delivered was sent.
    let reached = |states: &[&str]| states.iter().filter_map(|state| by_status.get(*state)).sum::<i64>();
    let row = agent
        .query_one(
            "SELECT (SELECT count(*) FROM twinlog.failed_rows), \
             (SELECT coalesce(sum(healed), 0)::bigint FROM twinlog.accounting), \
             (SELECT (report ->> 'delay_seconds')::float8 FROM twinlog.daemon)",
            &[],
        )
        .await?;
    Ok(format!(
        "Agent DB: sent {}  delivered {}  read {}  received {}  waiting {}  lag {:.1} s  parked {}  healed {}",
        reached(&["sent", "delivered", "read", "played"]),
        reached(&["delivered", "read", "played"]),
        reached(&["read", "played"]),
        reached(&["received"]),
        reached(&["pending", "sending", "accepted", "held", "unknown"]),
        row.get::<_, Option<f64>>(2).unwrap_or(0.0),
        row.get::<_, i64>(0),
        row.get::<_, i64>(1),
    ))
}
