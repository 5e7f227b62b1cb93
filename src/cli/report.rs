//! How an error is printed: what was tried, the causes, what to do.

use std::io::Write;

use anstyle::{AnsiColor, Style};

use super::printable::one_line;
use crate::agent_db::AgentError;
use crate::config::ConfigError;
use crate::dev::postgres::ClusterError;
use crate::migrations::MigrationError;
use crate::postgres::SessionError;
use crate::replication::SyncError;
use crate::site_db::SiteError;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();
const KEY: Style = Style::new().bold();

/// Prints an error, its causes and its hint to standard error.
pub(super) fn error(error: &anyhow::Error) {
    // If standard error is closed, the exit code is all that is left.
    let _ = write_error(&mut anstream::stderr().lock(), error);
}

fn write_error(out: &mut impl Write, error: &anyhow::Error) -> std::io::Result<()> {
    writeln!(out, "{ERROR}error{ERROR:#}: {}", lines(&error.to_string()))?;
    if let Some(ConfigError::Invalid(problems)) = error.downcast_ref() {
        for problem in problems {
            writeln!(out, "  {KEY}{}{KEY:#} {}", problem.key, problem.what)?;
            writeln!(out, "      {HINT}→{HINT:#} {}", problem.remedy)?;
        }
    }
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        // Some crates repeat their cause in their own message.
        if !last.contains(&text) {
            writeln!(out, "  because: {}", lines(&text))?;
        }
        last = text;
    }
    if let Some(hint) = hint(error) {
        writeln!(out, "{HINT}hint{HINT:#}: {}", lines(&hint))?;
    }
    Ok(())
}

/// A text whose line breaks are its own, and which has nothing else that a terminal obeys.
fn lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(one_line).collect();
    lines.join("\n")
}

/// The hint of the first error in the chain that has one.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let of_migration = cause.downcast_ref().and_then(MigrationError::hint);
        let of_sync = || cause.downcast_ref().and_then(SyncError::hint);
        let of_agent = || cause.downcast_ref().and_then(AgentError::hint);
        let of_session = || cause.downcast_ref().and_then(SessionError::hint);
        let of_site = || cause.downcast_ref().and_then(SiteError::hint).map(str::to_owned);
        let of_cluster = || cause.downcast_ref().and_then(ClusterError::hint).map(str::to_owned);
        of_migration
            .or_else(of_sync)
            .or_else(of_agent)
            .or_else(of_session)
            .or_else(of_cluster)
            .or_else(of_site)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Problem;
    use crate::postgres::Side;

    fn printed(error: &anyhow::Error) -> String {
        let mut out = anstream::StripStream::new(Vec::new());
        write_error(&mut out, error).unwrap();
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn configuration_problems_are_a_list_of_keys_and_remedies() {
        let error = ConfigError::Invalid(vec![Problem {
            key: "site.url".to_owned(),
            what: "is missing".to_owned(),
            remedy: "set it".to_owned(),
        }]);
        assert_eq!(
            printed(&error.into()),
            "error: 1 problem(s) in the configuration\n  site.url is missing\n      → set it\n"
        );
    }

    #[test]
    fn an_error_says_its_causes_once_and_its_hint() {
        let error = MigrationError::Rights {
            side: Side::Site,
            role: "me".to_owned(),
            grants: vec!["GRANT CREATE ON DATABASE \"crm\" TO \"me\"".to_owned()],
        };
        let error = anyhow::Error::new(error).context("prepare the databases");
        assert_eq!(
            printed(&error),
            "error: prepare the databases\n  because: the role \"me\" may not create Twinlog's tables in the Site DB\n\
             hint: run as the database's owner: GRANT CREATE ON DATABASE \"crm\" TO \"me\"\n"
        );
    }
}
