//! What arrives in the Agent DB, as it arrives: one line that changes on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::screen::Screen;
use crate::postgres::{self, Side};
use crate::shutdown;

/// How often a terminal is brought up to date, and how often a plain line is worth one.
const TERMINAL: Duration = Duration::from_millis(150);
const PLAIN: Duration = Duration::from_secs(1);

/// The display while it runs.
pub(super) struct Live {
    stop: CancellationToken,
    task: JoinHandle<()>,
    bar: ProgressBar,
}

impl Live {
    pub(super) async fn start(agent_url: &str, screen: &Screen) -> anyhow::Result<Self> {
        let agent = postgres::connect(Side::Agent, &agent_url.parse()?, "twinlog demo display").await?;
        let stop = CancellationToken::new();
        let bar = screen.live();
        let task = tokio::spawn(show(agent, screen.clone(), bar.clone(), stop.clone()));
        Ok(Self { stop, task, bar })
    }

    /// Shows the last figures and ends.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        // A display that failed has shown what it could.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

async fn show(agent: Client, screen: Screen, bar: ProgressBar, stop: CancellationToken) {
    let (pause, between) = if screen.is_live() {
        // Two lines: one would not fit into 80 columns.
        (TERMINAL, "\n              ")
    } else {
        (PLAIN, "  ")
    };
    let mut last = String::new();
    loop {
        let running = shutdown::sleep(pause, &stop).await;
        let Ok([messages, daemon]) = figures(&agent).await else {
            break;
        };
        let line = format!("Agent DB: {messages}{between}{daemon}");
        if screen.is_live() {
            bar.set_message(line.clone());
            bar.tick();
        } else if line != last {
            screen.say(format!("  {line}"));
        }
        last = line;
        if !running {
            break;
        }
    }
    bar.finish_and_clear();
    if screen.is_live() {
        // What it was about stays readable, in the place where the live line was.
        screen.say(format!("    {last}"));
    }
}

/// What became of the messages, and how the daemon does.
async fn figures(agent: &Client) -> Result<[String; 2], tokio_postgres::Error> {
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
    let messages = format!(
        "sent {}  delivered {}  read {}  received {}  waiting {}",
        reached(&["sent", "delivered", "read", "played"]),
        reached(&["delivered", "read", "played"]),
        reached(&["read", "played"]),
        reached(&["received"]),
        reached(&["pending", "sending", "accepted", "held", "unknown"]),
    );
    let daemon = format!(
        "lag {:.1} s  parked {}  healed {}",
        row.get::<_, Option<f64>>(2).unwrap_or(0.0),
        row.get::<_, i64>(0),
        row.get::<_, i64>(1),
    );
    Ok([messages, daemon])
}
