//! `twinlog doctor`: looks at everything that a set-up needs, and says of each fault why it matters and what to paste.
//!
//! Nothing here writes to a database or sends a message. The questions are asked in the rooms that own them (`source`, `agent_db`,
//! `site_db`, `provider`, `migrations`); what they mean is decided here, by pure functions from facts to [`Finding`]s, with the
//! remedies that those rooms know. Each question has a time limit, and one that fails is itself a finding, never the end of the
//! others: a missing right makes an [`Code::Unchecked`], no fault.
//!
//! | file | its job |
//! |---|---|
//! | `finding` | the codes, each with its severity and why it matters |
//! | `examination` | asks within a time limit, and collects |
//! | `databases` | asks both databases |
//! | `agent` | asks the Agent DB about the daemon's own tables and those that it writes |
//! | `numbers` | asks Meta |
//! | `addresses` | asks the addresses: our own, the public one, the front end's |
//! | `database`, `replication`, `bookkeeping`, `meta`, `address`, `realtime` | what the answers mean; pure |
//!
//! It names both halves, as `cli` does; nothing but `cli` names it.

mod address;
mod addresses;
mod agent;
mod bookkeeping;
mod database;
mod databases;
mod examination;
mod finding;
mod meta;
mod numbers;
mod realtime;
mod replication;

pub use self::examination::Diagnosis;
use self::examination::Examination;
pub use self::finding::{Code, Finding, Severity};
use crate::config::{Config, Problem};
use crate::replication::PipelineSettings;

/// Examines a set-up. `problems`: what is wrong with the configuration that the commands of a server or a daemon would refuse.
pub async fn examine(config: &Config, pipeline: &PipelineSettings, problems: &[Problem]) -> Diagnosis {
    let mut all = Examination::default();
    all.add(problems.iter().map(|problem| {
        Finding::new(Code::Configuration, &problem.key, problem.what.clone()).fix(problem.remedy.clone())
    }));
    all.done("the configuration");
    all.add(address::of_config(config));
    let (databases, addresses, numbers) = tokio::join!(
        Box::pin(databases::examine(config, pipeline)),
        Box::pin(addresses::examine(config)),
        Box::pin(numbers::examine(config)),
    );
    for part in [databases, addresses, numbers] {
        all.merge(part);
    }
    all.into_diagnosis()
}
