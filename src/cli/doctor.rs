//! `twinlog doctor`: examines a set-up, and prints what is found.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use clap::Args;

use super::pipelines;
use super::printable::one_line;
use super::{Global, Outcome};
use crate::config::{Config, ConfigError, Needs, Problem};
use crate::doctor::{self, Diagnosis, Finding, Severity};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where Meta reaches this server (its base URL): a handshake and a signed probe are sent there; overrides http.public_url
    #[arg(long, value_name = "URL")]
    public_url: Option<url::Url>,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let nothing = Needs {
        site: false,
        agent: false,
        whatsapp: false,
    };
    let mut config = global.start(nothing)?;
    if let Some(url) = &arguments.public_url {
        config.http.public_url = Some(url.clone());
    }
    let problems = problems(global, &config)?;
    let diagnosis = Box::pin(doctor::examine(&config, &pipelines::pipeline(&config), &problems)).await;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&diagnosis)?)?;
    } else {
        print(&mut out, &diagnosis).context("print")?;
    }
    Ok(if diagnosis.healthy {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

/// What the commands of a server and a daemon would refuse, as far as the configuration is one of either.
fn problems(global: &Global, config: &Config) -> anyhow::Result<Vec<Problem>> {
    let is_server = !config.whatsapp.accounts.is_empty() || !config.tokens.is_empty();
    let needs = Needs {
        site: true,
        agent: config.agent.is_set() || !is_server,
        whatsapp: is_server,
    };
    match global.check(needs).map_err(anyhow::Error::downcast) {
        Ok(()) => Ok(Vec::new()),
        Err(Ok(ConfigError::Invalid(problems))) => Ok(problems),
        Err(Ok(other)) => Err(other.into()),
        Err(Err(other)) => Err(other),
    }
}

fn print(out: &mut impl Write, diagnosis: &Diagnosis) -> std::io::Result<()> {
    for finding in &diagnosis.findings {
        print_finding(out, finding)?;
    }
    let count = |severity| {
        let of = diagnosis.findings.iter().filter(|finding| finding.severity == severity);
        of.count()
    };
    writeln!(
        out,
        "{} fault(s), {} warning(s), {} note(s); {} things were looked at",
        count(Severity::Fault),
        count(Severity::Warning),
        count(Severity::Note),
        diagnosis.checked.len()
    )
}

fn print_finding(out: &mut impl Write, finding: &Finding) -> std::io::Result<()> {
    let style: Style = match finding.severity {
        Severity::Fault => AnsiColor::Red.on_default().bold(),
        Severity::Warning => AnsiColor::Yellow.on_default().bold(),
        Severity::Note => AnsiColor::Cyan.on_default(),
    };
    let Finding {
        severity,
        about,
        what,
        why,
        ..
    } = finding;
    let code = finding.code.as_str();
    writeln!(
        out,
        "{style}{severity}{style:#} {code}: {}: {}",
        one_line(about),
        one_line(what)
    )?;
    writeln!(out, "    why: {why}")?;
    if let Some(fix) = &finding.fix {
        writeln!(out, "    fix: {}", one_line(fix))?;
    }
    Ok(())
}
