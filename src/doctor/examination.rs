//! Asks within a time limit, and collects what is found.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::finding::{Code, Finding, Severity};
use crate::agent_db::AgentError;
use crate::migrations::MigrationError;
use crate::postgres::SessionError;
use crate::postgres::error::explain;
use crate::replication::SyncError;
use crate::site_db::SiteError;
use crate::source::SourceError;

/// The longest that a question may take. A person waits.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Whether there is no fault.
    pub healthy: bool,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub checked: Vec<String>,
}

/// What was found so far, and what was looked at.
#[derive(Debug, Default)]
pub(super) struct Examination {
    findings: Vec<Finding>,
    checked: Vec<String>,
}

/// Why a question has no answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) what: String,
    pub(super) fix: Option<String>,
    /// The role may not ask.
    pub(super) is_of_rights: bool,
}

impl Unanswered {
    fn new(error: &dyn Error, fix: Option<String>) -> Self {
        let what = explain(error, None);
        Self {
            // `insufficient_privilege`, as `explain` and refusals print it.
            is_of_rights: what.contains("SQLSTATE 42501"),
            what,
            fix,
        }
    }
}

macro_rules! with_hints {
    ($($error:ty),*) => {$(
        impl From<$error> for Unanswered {
            fn from(error: $error) -> Self {
                let fix = error.hint();
                Self::new(&error, fix)
            }
        }
    )*};
}

with_hints!(SourceError, AgentError, SessionError, MigrationError, SyncError);

impl From<SiteError> for Unanswered {
    fn from(error: SiteError) -> Self {
        let fix = error.hint().map(str::to_owned);
        Self::new(&error, fix)
    }
}

impl Examination {
    /// Asks a question. `name` says what is looked at, as the end of "looked at …". [`None`] where there is no answer, which is a
    /// finding then.
    pub(super) async fn ask<T, E: Into<Unanswered>>(
        &mut self,
        name: &str,
        asked: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        match timeout(LIMIT, Box::pin(asked)).await {
            Ok(Ok(answer)) => {
                self.done(name);
                Some(answer)
            }
            Ok(Err(error)) => {
                let Unanswered {
                    what,
                    fix,
                    is_of_rights,
                } = error.into();
                let code = if is_of_rights {
                    Code::Unchecked
                } else {
                    Code::CheckFailed
                };
                let what = format!("could not be checked, because {what}");
                self.findings.push(Finding::new(code, name, what).fix_if(fix));
                None
            }
            Err(_) => {
                self.late(name);
                None
            }
        }
    }

    /// Notes that there was no answer in time.
    pub(super) fn late(&mut self, name: impl Display) {
        let what = format!(
            "could not be checked, because there was no answer within {} s",
            LIMIT.as_secs()
        );
        self.findings.push(Finding::new(Code::CheckFailed, name, what));
    }

    /// Notes that something was looked at.
    pub(super) fn done(&mut self, name: impl Into<String>) {
        self.checked.push(name.into());
    }

    /// Notes what was found.
    pub(super) fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }

    /// What was found so far.
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Takes over what another one has.
    pub(super) fn merge(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.checked.extend(other.checked);
    }

    /// The result: the worst findings first, in the order in which they were found.
    pub(super) fn into_diagnosis(mut self) -> Diagnosis {
        self.findings.sort_by_key(|finding| finding.severity);
        Diagnosis {
            healthy: self.findings.iter().all(|finding| finding.severity != Severity::Fault),
            findings: self.findings,
            checked: self.checked,
        }
    }
}
