//! `twinlog why`: a row's story: whether both databases have it alike, and if not, why.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::pipelines::pipeline;
use super::printable::one_line;
use super::replicated::Replicated;
use super::row_names::table_name;
use super::{Global, Outcome};
use crate::agent_db::{Control, DifferenceKind};
use crate::change::Key;
use crate::config::Needs;
use crate::migrations;
use crate::replication::{RowStory, row_story};
use crate::shutdown;

/// How often, and after which pauses, a difference is looked at again: a change may be on its way.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The table (schema.table, or a table of public)
    table: String,
    /// The values of the row's key, in the order of its columns; or the key as `failed list` shows it, such as '["5"]'
    #[arg(required = true)]
    key: Vec<String>,
    /// Prints the row's values too
    #[arg(long)]
    show_values: bool,
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
}

/// Whether both have the row alike, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Verdict {
    Equal,
    /// Neither has it.
    Absent,
    Missing,
    Extra,
    Different,
    NotCompared,
}

impl Verdict {
    const fn of(story: &RowStory) -> Self {
        match &story.difference {
            _ if story.unread.is_some() => Self::NotCompared,
            Some(DifferenceKind::Missing(_)) => Self::Missing,
            Some(DifferenceKind::Extra(_)) => Self::Extra,
            Some(DifferenceKind::Columns(_)) => Self::Different,
            None if story.in_site => Self::Equal,
            None => Self::Absent,
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Self::Equal => "equal in both databases",
            Self::Absent => "in neither database",
            Self::Missing => "missing in the Agent DB",
            Self::Extra => "only in the Agent DB",
            Self::Different => "different in the Agent DB",
            Self::NotCompared => "not compared",
        }
    }

    const fn is_fine(self) -> bool {
        matches!(self, Self::Equal | Self::Absent)
    }
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: true,
        agent: true,
        whatsapp: false,
    })?;
    migrations::apply_twinlog(&config.agent.url).await?;
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog why").await?;
    let (table, key) = (table_name(&arguments.table), parts(&arguments.key));
    let pipeline = pipeline(&config);
    let stop = shutdown::on_signal().context("listen for signals")?;
    let mut looks = 1;
    let (story, replicated) = loop {
        let story = Box::pin(row_story(&pipeline, &table, &key)).await?;
        let key = story.key.as_ref().map(Key::to_json);
        let replicated = Replicated::read(&control, &table, key.as_deref()).await?;
        // What is parked does not come by itself soon.
        let is_clear = Verdict::of(&story).is_fine() || story.unread.is_some() || replicated.is_parked();
        if is_clear || looks == LOOKS || !shutdown::sleep(PAUSE, &stop).await {
            break (story, replicated);
        }
        looks += 1;
    };
    let verdict = Verdict::of(&story);
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let whole = in_json(arguments, &table.to_string(), &story, &replicated);
        writeln!(out, "{whole}")?;
    } else {
        let key = story.key.as_ref().map(Key::to_json).unwrap_or_default();
        writeln!(
            out,
            "{} {}: {}",
            one_line(&table.to_string()),
            one_line(&key),
            verdict.in_words()
        )?;
        for line in lines(&story, &replicated, looks, arguments.show_values) {
            writeln!(out, "  {}", one_line(&line))?;
        }
    }
    Ok(if verdict.is_fine() && !replicated.is_parked() {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

/// The key's values: one argument each, or all as a JSON array.
fn parts(key: &[String]) -> Vec<String> {
    match key {
        [one] => Key::from_json(one).map_or_else(|| vec![one.clone()], |key| key.texts()),
        several => several.to_vec(),
    }
}

/// Why a row is as it is; without a reason that is known, what to do.
fn reasons(story: &RowStory, replicated: &Replicated) -> Vec<String> {
    let mut reasons: Vec<String> = story.unread.iter().cloned().collect();
    if story.filtered {
        reasons.push("the publication's row filter leaves it out".to_owned());
    }
    let verdict = Verdict::of(story);
    if !verdict.is_fine() || replicated.is_parked() {
        reasons.extend(replicated.reasons());
    }
    if reasons.is_empty() && !verdict.is_fine() {
        reasons.push("no reason is known: twinlog verify --repair writes it as the Site DB has it".to_owned());
    }
    reasons
}

fn lines(story: &RowStory, replicated: &Replicated, looks: u32, show_values: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let known = if story.in_site { "there" } else { "not there" };
    if story.unread.is_none() {
        let written = match &story.in_agent {
            None => "not there".to_owned(),
            Some(row) => match &row.written_at {
                Some(at) => format!("there, written last {at}"),
                None => "there (when it was written is not known without track_commit_timestamp)".to_owned(),
            },
        };
        lines.push(format!(
            "Site DB: {}",
            if story.filtered { "there, and filtered" } else { known }
        ));
        lines.push(format!("Agent DB: {written}"));
    }
    let differing = differing(story);
    if !differing.is_empty() {
        lines.push(format!(
            "differs in: {}",
            differing.iter().copied().collect::<Vec<_>>().join(", ")
        ));
    }
    if looks > 1 {
        lines.push(format!("looked at {looks} times"));
    }
    if show_values {
        for (name, value) in &story.site_values {
            let mark = if differing.contains(&**name) { "*" } else { " " };
            let agent = agent_value(story, name);
            let shown = |value: &Option<String>| {
                value
                    .as_ref()
                    .map_or_else(|| "NULL".to_owned(), |value| format!("{value:?}"))
            };
            lines.push(format!(
                "{mark}{name}: Site DB {}, Agent DB {}",
                shown(value),
                shown(&agent)
            ));
        }
    }
    lines.extend(
        reasons(story, replicated)
            .into_iter()
            .map(|reason| format!("why: {reason}")),
    );
    lines.extend(replicated.decisions());
    lines.push(format!("table: {}", replicated.proof()));
    lines
}

/// The columns that differ.
fn differing(story: &RowStory) -> BTreeSet<&str> {
    match &story.difference {
        Some(DifferenceKind::Columns(columns)) => columns.iter().map(|name| &**name).collect(),
        _ => BTreeSet::new(),
    }
}

fn agent_value(story: &RowStory, column: &str) -> Option<String> {
    let row = &story.in_agent.as_ref()?.row;
    row.get(column)?.as_str().map(str::to_owned)
}

fn in_json(arguments: &Arguments, table: &str, story: &RowStory, replicated: &Replicated) -> Value {
    let verdict = Verdict::of(story);
    let name: &str = verdict.into();
    let mut whole = json!({
        "table": table,
        "key": story.key.as_ref().map(Key::texts),
        "equal": verdict.is_fine(),
        "verdict": name,
        "columns": differing(story),
        "filtered": story.filtered,
        "in_site": story.in_site,
        "in_agent": story.in_agent.is_some(),
        "written_at": story.in_agent.as_ref().and_then(|row| row.written_at.clone()),
        "why": reasons(story, replicated),
        "replication": replicated.in_json(),
    });
    if arguments.show_values {
        let columns: Vec<Value> = story
            .site_values
            .iter()
            .map(|(name, value)| json!({ "name": &**name, "site": value, "agent": agent_value(story, name) }))
            .collect();
        whole["values"] = Value::Array(columns);
    }
    whole
}
