//! Asks the Agent DB about the daemon's own tables and about those that it writes, and whether the slot continues there.

use super::examination::{Examination, Unanswered};
use super::finding::{Code, Finding};
use super::{bookkeeping, replication};
use crate::agent_db::{Control, StoredCheckpoint, Survey, TableState};
use crate::change::{Hold, HoldCause, TableName};
use crate::migrations::{self, Set};
use crate::postgres::Side;
use crate::replication::{PipelineSettings, SyncError, gap_now};
use crate::source::Selection;
use crate::source::setup::PublicationFacts;

/// Examines the Agent DB. `publication`: what the Site DB publishes, if that is known.
pub(super) async fn examine(
    settings: &PipelineSettings,
    has_business_tables: bool,
    publication: Option<(&PublicationFacts, &Selection)>,
    own: &mut Examination,
) {
    let standing = migrations::standing(&settings.agent, Set::Twinlog);
    let mut checkpoint = None;
    let mut held = Vec::new();
    if let Some(standing) = own.ask("the daemon's tables", standing).await {
        own.add(bookkeeping::of_migrations(Set::Twinlog, &standing, true));
        // Another version's tables may lack a column.
        if standing.pending.is_empty() {
            (checkpoint, held) = Box::pin(of_stored(settings, own)).await;
        }
    }
    if has_business_tables
        && let Some(standing) = own
            .ask(
                "the business tables of the Agent DB",
                migrations::standing(&settings.agent, Set::Agent),
            )
            .await
    {
        own.add(bookkeeping::of_migrations(Set::Agent, &standing, false));
    }
    if let Some((facts, selection)) = publication {
        Box::pin(of_tables(settings, facts, selection, own)).await;
        let told = replication::of_held(&held, own.findings(), selection, settings.on_unreplicable_table);
        own.add(told);
        Box::pin(of_slot(settings, checkpoint.as_ref(), own)).await;
    }
}

/// What the daemon has stored. Returns its checkpoint, and the tables that it holds.
async fn of_stored(
    settings: &PipelineSettings,
    own: &mut Examination,
) -> (Option<StoredCheckpoint>, Vec<(TableName, Hold)>) {
    let read = async {
        let control = Control::connect_for_person(&settings.agent, &settings.slot, "twinlog doctor").await?;
        Ok::<_, crate::agent_db::AgentError>((
            control.visible_checkpoint().await?,
            control.daemon().await?,
            control.tables().await?,
            control.failed_counts().await?,
            control.proofs().await?,
        ))
    };
    let Some((checkpoint, daemon, tables, parked, proofs)) = own.ask("what the daemon has stored", read).await else {
        return (None, Vec::new());
    };
    own.add(bookkeeping::of_daemon(daemon.as_ref()));
    own.add(bookkeeping::of_parked(&parked));
    own.add(bookkeeping::of_proofs(&proofs, |proof| {
        let table = tables.iter().find(|table| table.table == proof.table);
        table.is_none_or(|table| proof.is_outdated(table))
    }));
    let held = tables
        .into_iter()
        .filter(|table| table.state == TableState::Held)
        .map(|table| {
            let cause = table.cause.unwrap_or(HoldCause::Unknown);
            (table.table, Hold::new(cause, table.detail.unwrap_or_default()))
        })
        .collect();
    (checkpoint, held)
}

/// Each published table, as the daemon would write it.
async fn of_tables(
    settings: &PipelineSettings,
    facts: &PublicationFacts,
    selection: &Selection,
    own: &mut Examination,
) {
    let Some(survey) = own
        .ask("the role's session in the Agent DB", Survey::connect(&settings.agent))
        .await
    else {
        return;
    };
    let Some(rights) = own.ask("the role's rights in the Agent DB", survey.rights()).await else {
        return;
    };
    if !rights.makes_temporary_tables {
        let what = "the role may not make temporary tables";
        let fix = format!(
            "in the Agent DB: GRANT TEMPORARY ON DATABASE {} TO {};",
            crate::postgres::quote_identifier(&settings.agent.database),
            crate::postgres::quote_identifier(&rights.role)
        );
        own.add([Finding::new(Code::LargeValues, Side::Agent, what).fix(fix)]);
    }
    for (name, table) in facts
        .tables
        .iter()
        .filter(|(name, _)| !facts.faults.contains_key(*name))
    {
        let examined = async {
            let examined = survey.examine(&table.description()).await;
            match examined {
                Err(error) if error.table_fault().is_some() => Ok(Err(error)),
                other => other.map(Ok),
            }
        };
        let Some(examined) = own.ask(&format!("table {name}"), examined).await else {
            continue;
        };
        match examined {
            Err(error) => own.add([replication::of_agent_error(
                name,
                &error,
                selection,
                settings.on_unreplicable_table,
            )]),
            Ok(()) => {
                if let Some(fires) = own
                    .ask(&format!("what fires in table {name}"), survey.what_fires(name))
                    .await
                {
                    own.add(replication::of_what_fires(name, &fires, &rights));
                }
            }
        }
    }
}

/// Opens a replication connection, and looks whether the slot continues where the Agent DB is.
async fn of_slot(settings: &PipelineSettings, checkpoint: Option<&StoredCheckpoint>, own: &mut Examination) {
    let stored = checkpoint
        .and_then(|stored| stored.gap.as_ref())
        .map(|gap| gap.reason.as_str());
    let asked = tokio::time::timeout(super::examination::LIMIT, Box::pin(gap_now(settings, checkpoint))).await;
    match asked {
        Ok(Ok(found)) => {
            own.done("a replication connection, and the slot");
            own.add(replication::of_gap(settings, stored, found.as_ref()));
        }
        Ok(Err(error)) => {
            own.add(replication::of_gap(settings, stored, None));
            let code = match error {
                SyncError::WrongPlugin { .. } | SyncError::SlotElsewhere { .. } => Code::SlotOfAnother,
                SyncError::Wire(_) => Code::ReplicationLogin,
                _ => Code::CheckFailed,
            };
            let Unanswered { what, fix, .. } = error.into();
            own.add([Finding::new(code, format!("slot {}", settings.slot), what).fix_if(fix)]);
        }
        Err(_) => own.late("a replication connection, and the slot"),
    }
}
