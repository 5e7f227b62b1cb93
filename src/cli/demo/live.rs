//! Shows what arrives in the Agent DB: a line that changes on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::screen::Screen;
use crate::postgres::{self, Client, Side};
use crate::shutdown;

/// Between two updates of the line on a terminal.
const TERMINAL: Duration = Duration::from_millis(150);
/// Between two plain lines.
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
        // A display that failed is no failure of the demo.
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
        // The last figures stay, in the place of the line.
        screen.say(format!("    {last}"));
    }
}

/// The messages by what they reached, and the daemon's lag and parked rows.
async fn figures(agent: &Client) -> anyhow::Result<[String; 2]> {
    let rows = agent
        .query("SELECT status, count(*) FROM public.whatsapp_messages GROUP BY 1", &[])
        .await?;
    let by_status: BTreeMap<String, i64> = rows.iter().map(|row| (row.get("status"), row.get("count"))).collect();
    // A message that was read was delivered, and one that was delivered was sent.
    let reached = |states: &[&str]| states.iter().filter_map(|state| by_status.get(*state)).sum::<i64>();
    let row = agent
        .query_one(
            "SELECT (SELECT count(*) FROM twinlog.failed_rows) AS parked, \
             (SELECT coalesce(sum(healed), 0)::bigint FROM twinlog.accounting) AS healed, \
             (SELECT (report ->> 'delay_seconds')::float8 FROM twinlog.daemon) AS delay",
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
        row.get::<_, Option<f64>>("delay").unwrap_or(0.0),
        row.get::<_, i64>("parked"),
        row.get::<_, i64>("healed"),
    );
    Ok([messages, daemon])
}
