//! The server's part of `twinlog status`: what each server last reported, and what the Site DB says about numbers, messages
//! and webhooks. Reads the Site DB only, so it works from any machine, whether a server runs or not.

use std::io::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::printable::one_line;
use crate::config::Config;
use crate::health;
use crate::site_db::accounts::{self, AccountStatus};
use crate::site_db::servers::{self, SILENT_SECONDS, StoredServer};
use crate::site_db::{Pool, SiteError, messages, webhook_events};

/// A webhook that waits for longer than this is late.
const LATE: Duration = Duration::from_secs(10);
/// How long the Site DB may take to answer everything: a person waits, and the daemon's part is known already.
const LIMIT: Duration = Duration::from_secs(4);
/// How long closing the connections may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// The part of a process that the daemon's own status tells.
const DAEMON: &str = "sync";

/// What `--json` prints as `server`.
#[derive(Debug, Serialize)]
pub(super) struct ServerStatus {
    /// Why the Site DB could not be asked, and what to do.
    unreachable: Option<String>,
    servers: Vec<Server>,
    /// Numbers that can't send now.
    numbers: Vec<Number>,
    /// Messages of which it is not known whether they were sent.
    unknown_messages: i64,
    /// Messages that have waited for more than a minute.
    unsent_messages: i64,
    /// Webhooks that wait.
    late_webhooks: i64,
    /// Webhooks with events that could not be stored.
    failed_webhooks: i64,
    /// Whether the configuration names numbers, so that a server should run.
    #[serde(skip)]
    expected: bool,
}

#[derive(Debug, Serialize)]
struct Server {
    hostname: String,
    pid: i64,
    version: String,
    uptime_seconds: f64,
    /// Since its last report.
    age_seconds: f64,
    silent: bool,
    /// Its parts that are degraded or not ready, each with the reason.
    troubles: Vec<(String, String)>,
}

#[derive(Debug, Serialize)]
struct Number {
    phone_number_id: String,
    /// Why and until when it sends nothing.
    state: String,
}

/// `None` if there is no server to tell of: the configuration names no numbers, and the Site DB is no server's.
pub(super) async fn read(config: &Config) -> Option<ServerStatus> {
    let expected = !config.whatsapp.accounts.is_empty();
    if !config.site.is_set() {
        return None;
    }
    let pool = Pool::connect(&config.site);
    let asked = tokio::time::timeout(LIMIT, ask(&pool, expected)).await;
    let status = match asked.unwrap_or_else(|_| Err(SiteError::timed_out())) {
        Ok(status) => status.filter(|status| expected || !status.servers.is_empty()),
        Err(_) if !expected => None,
        Err(error) => {
            let mut status = ServerStatus::new(expected);
            let hint = error.hint().unwrap_or("see the Site DB's log");
            status.unreachable = Some(format!("{}: {hint}", error.summary()));
            Some(status)
        }
    };
    let _ = tokio::time::timeout(CLOSE_LIMIT, pool.close()).await;
    status
}

/// `None` if the Site DB has not the server's tables.
async fn ask(pool: &Pool, expected: bool) -> Result<Option<ServerStatus>, SiteError> {
    let Some(servers) = servers::all(pool).await? else {
        return match expected {
            false => Ok(None),
            true => Err(SiteError::Missing {
                what: "the Site DB has not the server's tables".to_owned(),
                remedy: "run: twinlog migrate site".to_owned(),
            }),
        };
    };
    let (gaps, backlog) = (messages::gaps(pool).await?, webhook_events::backlog(pool, LATE).await?);
    let numbers = accounts::overview(pool).await?.into_iter().filter_map(number).collect();
    Ok(Some(ServerStatus {
        servers: servers.into_iter().map(server).collect(),
        numbers,
        unknown_messages: gaps.unknown,
        unsent_messages: gaps.unsent,
        late_webhooks: backlog.late,
        failed_webhooks: backlog.failed,
        ..ServerStatus::new(expected)
    }))
}

fn server(stored: StoredServer) -> Server {
    let parts = stored.components.as_object().into_iter().flatten();
    let is = |part: &serde_json::Value, member: &str| part.get(member).and_then(serde_json::Value::as_bool);
    let starts = |part: &serde_json::Value| {
        let trouble = part.get("trouble").and_then(serde_json::Value::as_str);
        stored.uptime_seconds < SILENT_SECONDS && trouble == Some(health::STARTING)
    };
    let troubles = parts
        .filter(|(name, part)| {
            let is_ours = *name != DAEMON && !starts(part);
            is_ours && (is(part, "ready") == Some(false) || is(part, "degraded") == Some(true))
        })
        .map(|(name, part)| {
            let reason = part.get("reason").and_then(serde_json::Value::as_str);
            (name.clone(), reason.unwrap_or_default().to_owned())
        })
        .collect();
    Server {
        hostname: stored.hostname,
        pid: stored.pid,
        version: stored.version,
        uptime_seconds: stored.uptime_seconds,
        age_seconds: stored.age_seconds,
        silent: stored.age_seconds > SILENT_SECONDS,
        troubles,
    }
}

fn number(number: accounts::Overview) -> Option<Number> {
    let state = if number.status == AccountStatus::Held {
        let code = number.hold_code.unwrap_or_default();
        format!(
            "held, its messages wait: code {code}: {}",
            number.hold_reason.unwrap_or_default()
        )
    } else if number.throttled_seconds > 0.0 {
        format!(
            "paused by Meta for {:.0} more seconds; its messages wait and go then",
            number.throttled_seconds
        )
    } else {
        return None;
    };
    Some(Number {
        phone_number_id: number.phone_number_id.as_str().to_owned(),
        state,
    })
}

impl ServerStatus {
    const fn new(expected: bool) -> Self {
        Self {
            unreachable: None,
            servers: Vec::new(),
            numbers: Vec::new(),
            unknown_messages: 0,
            unsent_messages: 0,
            late_webhooks: 0,
            failed_webhooks: 0,
            expected,
        }
    }

    /// Whether a server runs, and neither it nor its work is in trouble.
    pub(super) fn is_healthy(&self) -> bool {
        let alive = || self.servers.iter().filter(|server| !server.silent);
        self.unreachable.is_none()
            && alive().next().is_some()
            && alive().all(|server| server.troubles.is_empty())
            && self.numbers.is_empty()
            && self.failed_webhooks == 0
            && self.late_webhooks == 0
    }

    pub(super) fn print(&self, out: &mut impl Write) -> anyhow::Result<()> {
        const GOOD: Style = AnsiColor::Green.on_default().bold();
        const BAD: Style = AnsiColor::Red.on_default().bold();
        if let Some(reason) = &self.unreachable {
            writeln!(out, "server: {BAD}unknown{BAD:#}: {}", one_line(reason))?;
            return Ok(());
        }
        if self.servers.is_empty() && self.expected {
            writeln!(out, "server: {BAD}none runs{BAD:#}: start twinlog run or twinlog serve")?;
        }
        for server in &self.servers {
            let name = format!(
                "server {} (pid {}, {})",
                one_line(&server.hostname),
                server.pid,
                one_line(&server.version)
            );
            if server.silent {
                writeln!(
                    out,
                    "{name}: {BAD}gone{BAD:#}: no report for {:.0} s",
                    server.age_seconds
                )?;
            } else if server.troubles.is_empty() {
                writeln!(out, "{name}: {GOOD}well{GOOD:#}")?;
            } else {
                writeln!(out, "{name}: {BAD}degraded{BAD:#}")?;
                for (part, reason) in &server.troubles {
                    writeln!(out, "  {}: {}", one_line(part), one_line(reason))?;
                }
            }
        }
        for number in &self.numbers {
            writeln!(
                out,
                "  number {}: {}",
                one_line(&number.phone_number_id),
                one_line(&number.state)
            )?;
        }
        for (count, what) in [
            (
                self.unknown_messages,
                "messages of which it is not known whether they were sent",
            ),
            (self.unsent_messages, "messages that have waited for more than a minute"),
            (self.late_webhooks, "webhooks that wait to be processed"),
            (
                self.failed_webhooks,
                "webhooks with events that could not be stored: twinlog inbox replay --state failed",
            ),
        ] {
            if count > 0 {
                writeln!(out, "  {count} {what}")?;
            }
        }
        Ok(())
    }
}
