//! `twinlog trace`: a message's whole story, over the API, the Site DB, Meta, the webhooks and the Agent DB, and what is missing in it.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::printable::one_line;
use super::replicated::{Replicated, in_text};
use super::{Global, Outcome};
use crate::agent_db::{Control, LookedAt, RowLook};
use crate::change::TableName;
use crate::config::{Config, Needs};
use crate::provider::Direction;
use crate::site_db::messages::{self, MessageRow, OpenWebhook, Report, Surroundings};
use crate::site_db::outbox_decisions::{self, Kept};
use crate::site_db::{MessageStatus, Pool};

/// Messages of one name that are told: a client's id may be used by several clients.
const MOST: u32 = 10;
/// Reports that are told.
const MOST_REPORTS: u32 = 100;
/// Without a report for so long, one is missing. Meta reports `sent` within seconds.
const REPORT_WITHIN: time::Duration = time::Duration::minutes(5);
/// A message that waits for longer needs a reason.
const SENT_WITHIN: time::Duration = time::Duration::minutes(1);
/// The Agent DB gets a change within milliseconds.
const REPLICATED_WITHIN: time::Duration = time::Duration::seconds(5);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The message's id, tl:ID (as Meta returns it), Meta's id (wamid.…), or the client's id
    message: String,
    /// Prints what it says and to whom, too
    #[arg(long)]
    show_values: bool,
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
}

/// Something that happened to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    at: OffsetDateTime,
    what: String,
}

/// All that is known of a message.
struct Story {
    row: MessageRow,
    around: Surroundings,
    reports: Vec<Report>,
    webhooks: Vec<OpenWebhook>,
    decisions: Vec<Kept>,
    agent: Option<AgentSide>,
}

/// What the Agent DB has of it.
struct AgentSide {
    row: Option<LookedAt>,
    /// What the automation did: agent, status, when.
    processed: Vec<Value>,
    replicated: Replicated,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: true,
        agent: false,
        whatsapp: false,
    })?;
    let pool = Pool::connect(&config.site);
    let stories = Box::pin(read(&pool, &config, &arguments.message)).await;
    pool.close().await;
    let stories = stories?;
    let mut out = anstream::stdout().lock();
    let complete = !stories.is_empty() && stories.iter().all(|story| missing(story).is_empty());
    if arguments.json {
        let told: Vec<Value> = stories
            .iter()
            .map(|story| in_json(story, arguments.show_values))
            .collect();
        writeln!(out, "{}", json!({ "complete": complete, "messages": told }))?;
    } else if stories.is_empty() {
        writeln!(
            out,
            "no message has this id: give the message's id, tl:ID, Meta's id (wamid.…) or the client's id"
        )?;
    }
    for story in stories.iter().filter(|_| !arguments.json) {
        for line in lines(story, arguments.show_values) {
            writeln!(out, "{}", one_line(&line))?;
        }
    }
    Ok(if complete { Outcome::Success } else { Outcome::Problem })
}

async fn read(pool: &Pool, config: &Config, name: &str) -> anyhow::Result<Vec<Story>> {
    let ids = messages::named(pool, name, MOST).await?;
    let mut stories = Vec::new();
    for row in messages::find_many(pool, &ids).await? {
        let Some(around) = messages::surroundings(pool, row.id).await? else {
            continue;
        };
        stories.push(Story {
            around,
            reports: messages::reports(pool, row.id, MOST_REPORTS).await?,
            webhooks: messages::open_webhooks(pool, row.id, row.wamid.as_ref()).await?,
            decisions: outbox_decisions::of_message(pool, row.id).await?,
            agent: None,
            row,
        });
    }
    stories.sort_by_key(|story| (story.row.created_at, story.row.id));
    if !stories.is_empty() && config.agent.is_set() {
        let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog trace").await?;
        let look = RowLook::connect(&config.agent.url, "twinlog trace").await?;
        for story in &mut stories {
            story.agent = Some(agent_side(&control, &look, story.row.id).await?);
        }
    }
    Ok(stories)
}

async fn agent_side(control: &Control, look: &RowLook, id: Uuid) -> anyhow::Result<AgentSide> {
    let (table, log) = (
        TableName::new("public", "whatsapp_messages"),
        TableName::new("public", "agent_processing_log"),
    );
    let (id, key) = (id.to_string(), json!([id.to_string()]).to_string());
    let row = look.with_uuid(&table, "id", &id).await.map(|mut rows| rows.pop());
    // An Agent DB may have no such log; and one without the messages' table is told of by the table's state.
    let processed = look.with_uuid(&log, "message_id", &id).await.unwrap_or_default();
    Ok(AgentSide {
        row: row.unwrap_or_default(),
        processed: processed.into_iter().map(|entry| entry.row).collect(),
        replicated: Replicated::read(control, &table, Some(&key)).await?,
    })
}

/// What happened, in the order of time.
fn steps(story: &Story) -> Vec<Step> {
    let (row, around) = (&story.row, &story.around);
    let client = row.client_name.as_deref().unwrap_or("nobody that is known");
    let begun = match (row.direction, &row.client_id) {
        (Direction::Inbound, _) => "its webhook was committed to the Site DB".to_owned(),
        (Direction::Outbound, Some(client_id)) => {
            format!("submitted by {client} as {client_id}, and committed as pending")
        }
        (Direction::Outbound, None) if row.client_name.is_none() => {
            "written on the phone, as a webhook told".to_owned()
        }
        (Direction::Outbound, None) => format!("submitted by {client}, and committed as pending"),
    };
    let mut steps = Vec::new();
    let mut step = |at: Option<OffsetDateTime>, what: String| steps.extend(at.map(|at| Step { at, what }));
    step(around.provider_at, "written, by WhatsApp's clock".to_owned());
    step(Some(row.created_at), begun);
    step(
        row.sending_at,
        format!(
            "attempt {} began: committed as sending, Graph API called",
            row.attempt.max(1)
        ),
    );
    let answer = row
        .response_status
        .map(|status| format!(" (last answer: HTTP {status})"));
    let wamid = row.wamid.as_ref().map_or("no id", |wamid| wamid.as_str());
    step(
        row.accepted_at,
        format!("Meta has it as {wamid}{}", answer.unwrap_or_default()),
    );
    step(row.held_at, "Meta holds it to assess its template".to_owned());
    step(
        row.unknown_at,
        "it was not known whether it was sent, or its client left without an answer".to_owned(),
    );
    step(row.cancelled_at, "cancelled".to_owned());
    for (at, what) in [
        (row.sent_at, "sent"),
        (row.delivered_at, "delivered"),
        (row.read_at, "read"),
        (row.played_at, "played"),
    ] {
        step(at, format!("{what}, by Meta's clock"));
    }
    step(row.failed_at, format!("failed: {}", problem(row)));
    for report in &story.reports {
        let code = report
            .error_code
            .map(|code| format!(" with code {code}"))
            .unwrap_or_default();
        let late = report.created_at - report.provider_at;
        step(
            Some(report.created_at),
            format!(
                "report {:?}{code} stored, {} after Meta's time",
                report.status,
                in_seconds(late)
            ),
        );
    }
    for kept in &story.decisions {
        step(
            Some(kept.decided_at),
            format!(
                "decided by {} (role {}): {}, {} → {}: {}",
                kept.who, kept.role, kept.decision, kept.from_status, kept.to_status, kept.why
            ),
        );
    }
    if let Some(agent) = &story.agent {
        let at = |text: Option<&str>| OffsetDateTime::parse(text?, &time::format_description::well_known::Rfc3339).ok();
        let written = agent.row.as_ref().and_then(|row| at(row.written_at.as_deref()));
        step(written, "written to the Agent DB as it is there".to_owned());
        for entry in &agent.processed {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("?");
            let what = format!("processed by {}: {}", text("agent"), text("status"));
            step(at(entry.get("processed_at").and_then(Value::as_str)), what);
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}

fn problem(row: &MessageRow) -> String {
    let code = row.error_code.map(|code| format!("{code} ")).unwrap_or_default();
    let why = row.error_message.as_deref().or(row.error_class.as_deref());
    format!("{code}{}", why.unwrap_or("no reason is known"))
}

/// What is missing in the story, and why, as far as that is known.
fn missing(story: &Story) -> Vec<String> {
    let (row, around) = (&story.row, &story.around);
    let since = |at: Option<OffsetDateTime>| around.now - at.unwrap_or(row.created_at);
    let mut missing = Vec::new();
    match row.status {
        MessageStatus::Pending if since(None) > SENT_WITHIN => {
            missing.push(format!(
                "not sent for {}: {}",
                in_words(since(None)),
                why_pending(story)
            ));
        }
        MessageStatus::Sending if around.lease_until.is_some_and(|until| until < around.now) => {
            missing.push(
                "its attempt has no outcome, and its time is over: the next sweep of a server makes it unknown"
                    .to_owned(),
            );
        }
        MessageStatus::Unknown => missing.push(format!(
            "it is not known whether it was sent: {}; a report of Meta's settles it, or twinlog outbox resolve {}",
            problem(row),
            row.id
        )),
        MessageStatus::Accepted if since(row.accepted_at) > REPORT_WITHIN => {
            let reported = if story.reports.is_empty() {
                "no status"
            } else {
                "none further"
            };
            missing.push(format!(
                "accepted, but {reported} for {}",
                in_words(since(row.accepted_at))
            ));
        }
        MessageStatus::Held if since(row.held_at) > REPORT_WITHIN => {
            missing.push(format!("held by Meta for {}", in_words(since(row.held_at))));
        }
        MessageStatus::Failed => missing.push(format!("it failed: {}", problem(row))),
        _ => {}
    }
    for webhook in &story.webhooks {
        let failed = if webhook.state == "failed" {
            "has failed"
        } else {
            "is not processed"
        };
        missing.push(format!(
            "a webhook about it, received {}, {failed}: twinlog inbox replay {}",
            in_text(webhook.received_at),
            webhook.id
        ));
    }
    if let Some(agent) = &story.agent {
        missing.extend(missing_in_agent(agent, row, around));
    }
    missing
}

fn why_pending(story: &Story) -> String {
    let (row, around) = (&story.row, &story.around);
    let later = |at: Option<OffsetDateTime>| at.filter(|at| *at > around.now);
    if let Some(reason) = &around.hold_reason {
        return format!("its number is held: {reason}");
    }
    if let Some(until) = later(around.throttled_until) {
        return format!("Meta throttles its number until {}", in_text(until));
    }
    if let Some(id) = around.behind {
        return format!("the message {id} of its conversation is before it");
    }
    if let Some(at) = later(row.next_attempt_at) {
        return format!("the next attempt is {}; the last one: {}", in_text(at), problem(row));
    }
    if around.send_by.is_some_and(|by| by < around.now) {
        return "its client has stopped waiting: it is cancelled by the next sweep of a server".to_owned();
    }
    match around.leased_until {
        Some(until) if until > around.now => "it is due, and the server that has its number will send it".to_owned(),
        _ => "no server sends for its number".to_owned(),
    }
}

fn missing_in_agent(agent: &AgentSide, row: &MessageRow, around: &Surroundings) -> Vec<String> {
    let status = agent
        .row
        .as_ref()
        .and_then(|row| row.row.get("status"))
        .and_then(Value::as_str);
    let what = match (&agent.row, status) {
        (None, _) => "not in the Agent DB".to_owned(),
        (Some(_), Some(status)) if status != row.status.as_str() => format!("in the Agent DB as {status}"),
        (Some(_), _) => return Vec::new(),
    };
    let reasons = agent.replicated.reasons();
    if !reasons.is_empty() {
        return reasons.into_iter().map(|reason| format!("{what}: {reason}")).collect();
    }
    if around.now - around.updated_at <= REPLICATED_WITHIN {
        return Vec::new();
    }
    vec![format!(
        "{what}, and no reason is known: twinlog why whatsapp_messages {}",
        row.id
    )]
}

fn in_seconds(duration: time::Duration) -> String {
    format!("{:.3} s", duration.as_seconds_f64())
}

/// A long time in the two largest units that it has.
fn in_words(duration: time::Duration) -> String {
    let seconds = duration.whole_seconds().max(0);
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        if rest >= size && parts.len() < 2 {
            parts.push(format!("{} {unit}", rest / size));
            rest %= size;
        }
    }
    if parts.is_empty() {
        "0 s".to_owned()
    } else {
        parts.join(" ")
    }
}

/// Each step with the time since the one before.
fn with_pauses(steps: &[Step]) -> impl Iterator<Item = (&Step, Option<time::Duration>)> {
    let before = std::iter::once(None).chain(steps.iter().map(Some));
    steps
        .iter()
        .zip(before)
        .map(|(step, before)| (step, before.map(|before| step.at - before.at)))
}

fn lines(story: &Story, show_values: bool) -> Vec<String> {
    let row = &story.row;
    let mut lines = vec![format!(
        "{} ({} {}, {}) of number {}: {}",
        row.id,
        match row.direction {
            Direction::Inbound => "from a person,",
            Direction::Outbound => "ours,",
        },
        row.kind,
        row.wamid.as_ref().map_or("no id of Meta's", |wamid| wamid.as_str()),
        row.phone_number_id,
        row.status
    )];
    lines.push(format!("  conversation {}, lead {}", row.conversation_id, row.lead_id));
    if show_values {
        lines.push(format!("  to {}", row.recipient.as_deref().unwrap_or("-")));
        lines.push(format!("  says {:?}", story.around.body.as_deref().unwrap_or_default()));
    }
    let steps = steps(story);
    lines.extend(with_pauses(&steps).map(|(step, pause)| {
        let pause = pause.map(|pause| format!("+{}", in_seconds(pause))).unwrap_or_default();
        format!("  {} {pause:>12} {}", in_text(step.at), step.what)
    }));
    match &story.agent {
        None => lines.push("  the Agent DB is not looked at: agent.url is not set".to_owned()),
        Some(agent) if agent.row.is_some() => lines.push("  in the Agent DB: there".to_owned()),
        Some(_) => lines.push("  in the Agent DB: not there".to_owned()),
    }
    let missing = missing(story);
    if missing.is_empty() {
        lines.push("  nothing is missing".to_owned());
    }
    lines.extend(missing.into_iter().map(|what| format!("  missing: {what}")));
    lines
}

fn in_json(story: &Story, show_values: bool) -> Value {
    let row = &story.row;
    let all = steps(story);
    let steps: Vec<Value> = with_pauses(&all)
        .map(|(step, pause)| {
            json!({ "at": in_text(step.at), "after_seconds": pause.map(time::Duration::as_seconds_f64), "what": step.what })
        })
        .collect();
    let mut whole = json!({
        "id": row.id,
        "wamid": row.wamid.as_ref().map(|wamid| wamid.as_str()),
        "direction": if row.direction == Direction::Inbound { "inbound" } else { "outbound" },
        "status": row.status.as_str(),
        "type": row.kind,
        "phone_number_id": row.phone_number_id.to_string(),
        "conversation_id": row.conversation_id,
        "lead_id": row.lead_id,
        "client_name": row.client_name,
        "client_id": row.client_id,
        "steps": steps,
        "in_agent": story.agent.as_ref().map(|agent| agent.row.is_some()),
        "replication": story.agent.as_ref().map(|agent| agent.replicated.in_json()),
        "missing": missing(story),
    });
    if show_values {
        whole["to"] = json!(row.recipient);
        whole["body"] = json!(story.around.body);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_time_is_told_in_two_units() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (3 * 3600 + 125, "3 h 2 min"),
            (86_400 * 2 + 5, "2 d 5 s"),
        ] {
            assert_eq!(in_words(time::Duration::seconds(seconds)), words);
        }
    }
}
