//! `twinlog outbox`: messages of ours that need a person, and what the person decides. Works on the Site DB, beside running servers
//! and without one: they find what is due by themselves.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::person::person;
use super::printable::one_line;
use super::{Global, Outcome};
use crate::config::Needs;
use crate::provider::OpaqueId;
use crate::site_db::messages::{Decided, Troubled, Undecidable, troubled};
use crate::site_db::outbox_decisions::{Author, Decision, decide};
use crate::site_db::{MessageStatus, Pool};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows messages that need a person; exits with 1 if there are any
    ///
    /// Those of which it is not known whether they were sent, those that are pending for more than a minute, those that Meta holds
    /// to assess their template, and those that failed. Failed and held ones leave the list when a person has decided about them.
    List(List),
    /// Sends a message as soon as possible that is pending, or failed before Meta had it
    Retry(Retry),
    /// Cancels a message that is pending
    Cancel(Decide),
    /// Settles a message of which it is not known whether it was sent; or notes that a failed one was looked at
    Resolve(Resolve),
}

#[derive(Debug, Args)]
struct List {
    /// Only those with this status
    #[arg(long, value_enum)]
    status: Vec<Trouble>,
    /// Failed ones of so many days
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    failed_days: u32,
    /// The most messages to show
    #[arg(long, value_name = "MESSAGES", default_value_t = 100)]
    limit: u32,
    /// Prints them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trouble {
    Unknown,
    Pending,
    Held,
    Failed,
}

impl Trouble {
    const fn status(self) -> MessageStatus {
        match self {
            Self::Unknown => MessageStatus::Unknown,
            Self::Pending => MessageStatus::Pending,
            Self::Held => MessageStatus::Held,
            Self::Failed => MessageStatus::Failed,
        }
    }
}

/// About which message it is decided, and why.
#[derive(Debug, Args)]
struct Decide {
    /// The message's id, as `outbox list` shows it (or tl:ID, as Meta returns it)
    #[arg(value_name = "ID", value_parser = message_id)]
    id: Uuid,
    /// Why; it is kept with your name
    #[arg(long, value_name = "TEXT", value_parser = super::person::reason)]
    reason: String,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Retry {
    #[command(flatten)]
    decide: Decide,
    /// Sends a message again of which it is not known whether it was sent: the recipient may get it twice
    #[arg(long)]
    may_send_twice: bool,
}

#[derive(Debug, Args)]
struct Resolve {
    #[command(flatten)]
    decide: Decide,
    /// How it is settled
    #[arg(long = "as", value_enum, value_name = "RESULT")]
    result: Resolution,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resolution {
    /// It was sent, as the recipient or Meta's console says
    Sent,
    /// It was not sent, and will not be
    NotSent,
    /// Nothing changes: a failed or held message was looked at
    Seen,
}

fn message_id(text: &str) -> Result<Uuid, String> {
    let opaque = OpaqueId::parse(text).map(|id| id.0);
    opaque
        .or_else(|| Uuid::try_parse(text).ok())
        .ok_or_else(|| "write the message's id, such as 0192f0c1-…: twinlog outbox list shows it".to_owned())
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: true,
        agent: false,
        whatsapp: false,
    })?;
    let pool = Pool::connect(&config.site);
    let result = Box::pin(work(&pool, arguments)).await;
    pool.close().await;
    result
}

async fn work(pool: &Pool, arguments: &Arguments) -> anyhow::Result<Outcome> {
    match &arguments.action {
        Action::List(list) => show(pool, list).await,
        Action::Retry(retry) => {
            let decision = if retry.may_send_twice {
                Decision::RetryUnknown
            } else {
                Decision::Retry
            };
            settle(pool, &retry.decide, decision).await
        }
        Action::Cancel(cancel) => settle(pool, cancel, Decision::Cancel).await,
        Action::Resolve(resolve) => {
            let decision = match resolve.result {
                Resolution::Sent => Decision::ResolveSent,
                Resolution::NotSent => Decision::ResolveNotSent,
                Resolution::Seen => Decision::ResolveSeen,
            };
            settle(pool, &resolve.decide, decision).await
        }
    }
}

async fn show(pool: &Pool, arguments: &List) -> anyhow::Result<Outcome> {
    let statuses = if arguments.status.is_empty() {
        Trouble::value_variants()
    } else {
        &arguments.status
    };
    let statuses: Vec<MessageStatus> = statuses.iter().map(|trouble| trouble.status()).collect();
    let rows = troubled(pool, &statuses, arguments.failed_days, arguments.limit).await?;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let rows: Vec<Value> = rows.iter().map(in_json).collect();
        writeln!(out, "{}", Value::Array(rows))?;
    } else if rows.is_empty() {
        writeln!(out, "no message needs a person")?;
    } else {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header([
            "id",
            "status",
            "since",
            "number",
            "type",
            "client",
            "why",
            "what can be done",
        ]);
        for row in &rows {
            table.add_row(
                [
                    row.id.to_string(),
                    row.status.to_string(),
                    in_text(row.since),
                    row.phone_number_id.to_string(),
                    row.kind.clone(),
                    row.client_name.clone().unwrap_or_default(),
                    why(row),
                    possible(row).join(", "),
                ]
                .map(|text| one_line(&text).into_owned()),
            );
        }
        writeln!(out, "{table}")?;
        if rows.len() == arguments.limit as usize {
            writeln!(out, "(the first {}; --limit shows more)", rows.len())?;
        }
    }
    Ok(if rows.is_empty() {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

/// Why the message is where it is.
fn why(row: &Troubled) -> String {
    if let Some(reason) = &row.hold_reason {
        return format!("its number is held: {reason}");
    }
    let code = row.error_code.map(|code| format!("{code} "));
    let message = row.error_message.as_deref().or(row.error_class.as_deref());
    match (row.status, message) {
        (_, Some(message)) => format!("{}{message}", code.unwrap_or_default()),
        (MessageStatus::Pending, None) => {
            "no server sends for its number, or an earlier message of its conversation waits".to_owned()
        }
        (MessageStatus::Held, None) => "Meta assesses its template".to_owned(),
        (_, None) => String::new(),
    }
}

/// What can be decided about it.
fn possible(row: &Troubled) -> &'static [&'static str] {
    match row.status {
        MessageStatus::Unknown => &["resolve --as sent", "resolve --as not-sent", "retry --may-send-twice"],
        MessageStatus::Pending => &["retry", "cancel"],
        MessageStatus::Failed if !row.has_wamid => &["retry", "resolve --as seen"],
        MessageStatus::Failed | MessageStatus::Held => &["resolve --as seen"],
        _ => &[],
    }
}

fn in_text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

fn in_json(row: &Troubled) -> Value {
    json!({
        "id": row.id,
        "status": row.status.as_str(),
        "since": in_text(row.since),
        "created_at": in_text(row.created_at),
        "phone_number_id": row.phone_number_id.to_string(),
        "type": row.kind,
        "client_name": row.client_name,
        "client_id": row.client_id,
        "attempt": row.attempt,
        "next_attempt_at": row.next_attempt_at.map(in_text),
        "error_code": row.error_code,
        "error_class": row.error_class,
        "error_message": row.error_message,
        "number_held": row.hold_reason,
        "possible": possible(row),
    })
}

async fn settle(pool: &Pool, arguments: &Decide, decision: Decision) -> anyhow::Result<Outcome> {
    let who = person();
    let author = Author {
        who: &who,
        why: &arguments.reason,
    };
    let decided = decide(pool, arguments.id, decision, author).await?;
    let mut out = anstream::stdout().lock();
    match decided {
        Ok(Decided { from, to }) => {
            if arguments.json {
                let whole = json!({ "id": arguments.id, "decided": decision.to_string(), "from": from.as_str(), "to": to.as_str() });
                writeln!(out, "{whole}")?;
            } else {
                writeln!(
                    out,
                    "decided: {from} → {to}; twinlog trace {} tells the story",
                    arguments.id
                )?;
            }
            Ok(Outcome::Success)
        }
        Err(undecidable) => {
            let reason = not_decided(undecidable, decision);
            if arguments.json {
                writeln!(
                    out,
                    "{}",
                    json!({ "id": arguments.id, "decided": null, "reason": reason })
                )?;
            } else {
                writeln!(out, "nothing is changed: {reason}")?;
            }
            Ok(Outcome::Problem)
        }
    }
}

/// Why nothing was decided, and what could be.
fn not_decided(undecidable: Undecidable, decision: Decision) -> String {
    match undecidable {
        Undecidable::NotThere => "there is no message of ours with this id".to_owned(),
        Undecidable::Status(MessageStatus::Sending) => "it is being sent at this moment: look again in a minute".to_owned(),
        Undecidable::Status(MessageStatus::Unknown) if decision == Decision::Retry => {
            "it may have been sent: ask the recipient and settle it with outbox resolve, or send it again with --may-send-twice".to_owned()
        }
        Undecidable::Status(status) if decision == Decision::RetryUnknown => {
            format!("it is {status}, and so not one that may be sent twice: leave --may-send-twice out")
        }
        Undecidable::Status(status) => format!("it is {status}"),
        Undecidable::HasWamid(status) => {
            format!("it is {status}, and Meta has had it: send a new message instead")
        }
    }
}
