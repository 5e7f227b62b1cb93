//! What is found about replication: the limits and rights of the Site DB, the slot, the publication, and each table on both sides.

use std::collections::BTreeSet;

use super::finding::{Code, Finding};
use crate::agent_db::{AgentError, AgentRights, WhatFires};
use crate::change::{Hold, HoldCause, Identity, TableName};
use crate::config::OnUnreplicableTable;
use crate::postgres::{Side, quote_identifier, quote_literal};
use crate::replication::{GapReason, PipelineSettings};
use crate::source::setup::{PublicationFacts, ReplicationFacts};
use crate::source::{Selection, SourceError};

/// With less WAL left, little time is left.
const HEADROOM: i64 = 512 << 20;
/// A dead connection keeps the slot busy for this time at most, as with the default of 60 s and some more.
const SENDER_TIMEOUT_MS: i64 = 300_000;
/// Less than the daemon needs to say that it is alive, with a slow network.
const SHORT_SENDER_TIMEOUT_MS: i64 = 5_000;
/// Transactions of servers end within seconds.
const OLD_TRANSACTION_S: i64 = 300;
/// Slots that keep less than this cost nothing.
const IDLE_SLOT: i64 = 64 << 20;

/// An error that says itself what is wrong and what to do.
pub(super) fn of_source_error(code: Code, error: &SourceError) -> Finding {
    Finding::new(code, Side::Site, error.to_string()).fix_if(error.hint())
}

/// Limits, rights and slots of the Site DB.
pub(super) fn of_limits(facts: &ReplicationFacts, settings: &PipelineSettings) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Err(error) = &facts.server {
        let code = match error {
            SourceError::Version(_) => Code::Version,
            _ => Code::WalLevel,
        };
        found.push(of_source_error(code, error));
    }
    if let Err(error) = &facts.role {
        found.push(of_source_error(Code::ReplicationRight, error));
    }
    found.extend(of_free_places(facts));
    found.extend(of_sender(facts));
    let role = quote_identifier(&settings.site.user);
    if !facts.may_mark {
        found.push(
            Finding::new(Code::MarkRight, Side::Site, "the role may not execute pg_logical_emit_message").fix(format!(
                "on the Site DB, as superuser: GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO {role}; (since \
                 17: (boolean, text, text, boolean))"
            )),
        );
    }
    if facts.awaits_standby && !facts.sees_waits {
        found.push(
            Finding::new(
                Code::StandbyWaitsHidden,
                Side::Site,
                "synchronous_standby_names is set, and the role has no right to see who waits for a standby",
            )
            .fix(format!("on the Site DB: GRANT pg_read_all_stats TO {role};")),
        );
    }
    if let Some(seconds) = facts
        .oldest_transaction_s
        .filter(|seconds| *seconds > OLD_TRANSACTION_S)
    {
        found.push(
            Finding::new(
                Code::OldTransaction,
                Side::Site,
                format!("a transaction that has written is open for {seconds} s"),
            )
            .fix(
                "on the Site DB, find it: SELECT pid, usename, application_name, state, xact_start FROM pg_stat_activity WHERE \
                 backend_xid IS NOT NULL ORDER BY xact_start; and end it: SELECT pg_terminate_backend(pid);",
            ),
        );
    }
    for (name, retained) in facts.idle_slots.iter().filter(|(_, retained)| *retained > IDLE_SLOT) {
        found.push(
            Finding::new(
                Code::IdleSlot,
                Side::Site,
                format!("nothing reads slot {name}, which keeps {} of WAL", megabytes(*retained)),
            )
            .fix(format!(
                "start what reads it; or, if that is given up, on the Site DB: SELECT pg_drop_replication_slot({});",
                quote_literal(name)
            )),
        );
    }
    found.extend(of_slot(facts, settings));
    found
}

fn of_free_places(facts: &ReplicationFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let raise = |name: &str, to: i64| format!("on the Site DB: ALTER SYSTEM SET {name} = {to}; then restart it");
    if facts.slot.is_none() && facts.slots.0 >= facts.slots.1 {
        let what = format!(
            "all {} replication slots exist already (max_replication_slots)",
            facts.slots.1
        );
        found.push(
            Finding::new(Code::NoFreeSlot, Side::Site, what).fix(raise("max_replication_slots", facts.slots.1 + 5)),
        );
    }
    let is_ours_open = facts.slot.as_ref().is_some_and(|slot| slot.active);
    if !is_ours_open && facts.senders.0 >= facts.senders.1 {
        let what = format!(
            "all {} replication connections are open (max_wal_senders)",
            facts.senders.1
        );
        found.push(
            Finding::new(Code::NoFreeSender, Side::Site, what).fix(raise("max_wal_senders", facts.senders.1 + 5)),
        );
    }
    if facts.keep_size.is_none() {
        found.push(
            Finding::new(Code::SlotWalUnlimited, Side::Site, "max_slot_wal_keep_size has no limit (-1)").fix(
                "on the Site DB: ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf(); (less than its disk has free)",
            ),
        );
    }
    found
}

fn of_sender(facts: &ReplicationFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let timeout = facts.sender_timeout_ms;
    if !(SHORT_SENDER_TIMEOUT_MS..=SENDER_TIMEOUT_MS).contains(&timeout) {
        let what = match timeout {
            0 => "wal_sender_timeout is off".to_owned(),
            _ => format!("wal_sender_timeout is {timeout} ms"),
        };
        found.push(
            Finding::new(Code::SenderTimeout, Side::Site, what)
                .fix("on the Site DB: ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"),
        );
    }
    if facts.idle_slot_timeout_s > 0 {
        found.push(
            Finding::new(
                Code::IdleSlotTimeout,
                Side::Site,
                format!("idle_replication_slot_timeout is {} s", facts.idle_slot_timeout_s),
            )
            .fix("on the Site DB: ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();"),
        );
    }
    found
}

fn of_slot(facts: &ReplicationFacts, settings: &PipelineSettings) -> Vec<Finding> {
    let Some(slot) = &facts.slot else { return Vec::new() };
    let mut found = Vec::new();
    let about = format!("slot {}", settings.slot);
    let given_up = (settings.lost_slot.give_up_at.zip(slot.retained))
        .map(|(limit, kept)| i64::try_from(limit).unwrap_or(i64::MAX).saturating_sub(kept));
    let headroom = [slot.headroom, given_up].into_iter().flatten().min();
    if let Some(headroom) = headroom.filter(|headroom| *headroom < HEADROOM) {
        found.push(
            Finding::new(
                Code::SlotHeadroom,
                &about,
                format!("{} of WAL are left until the slot is given up (max_slot_wal_keep_size, sync.give_up_slot_at)", megabytes(headroom.max(0))),
            )
            .fix(
                "start the daemon, or see why it is behind (twinlog status); meanwhile on the Site DB, if its disk has the room: ALTER \
                 SYSTEM SET max_slot_wal_keep_size = '…'; SELECT pg_reload_conf(); and raise sync.give_up_slot_at, if it is set",
            ),
        );
    }
    if slot.failover == Some(false) && facts.standby_slots > 0 {
        found.push(
            Finding::new(
                Code::SlotFailover,
                &about,
                "if a physical slot of the Site DB is a standby's: the slot is not kept there (failover is off)",
            )
            .fix(format!(
                "stop the daemon, and over a replication connection (psql \"… replication=database\"): ALTER_REPLICATION_SLOT {} (FAILOVER \
                 true); on the standby: ALTER SYSTEM SET sync_replication_slots = on; SELECT pg_reload_conf(); (it needs \
                 hot_standby_feedback, primary_slot_name, and a dbname in primary_conninfo)",
                quote_identifier(&settings.slot)
            )),
        );
    } else if slot.failover.is_none() && facts.standby_slots > 0 {
        found.push(
            Finding::new(
                Code::SlotFailover,
                &about,
                "if a physical slot of the Site DB is a standby's: Postgres before 17 keeps no logical slots there",
            )
            .fix("after a failover: twinlog resync --all; or upgrade the Site DB to 17 or later"),
        );
    }
    found
}

fn megabytes(bytes: i64) -> String {
    format!("{} MB", bytes >> 20)
}

/// A gap: stored, or found now.
pub(super) fn of_gap(settings: &PipelineSettings, stored: Option<&str>, found: Option<&GapReason>) -> Option<Finding> {
    let what = match (stored, found) {
        (Some(stored), _) => stored.to_owned(),
        (None, Some(found)) => found.to_string(),
        (None, None) => return None,
    };
    let about = format!("slot {}", settings.slot);
    Some(
        Finding::new(Code::Gap, about, what)
            .fix("check that site.url names the right database, then run: twinlog resync --all"),
    )
}

/// The publication, and what it says of its tables.
pub(super) fn of_publication(facts: &PublicationFacts, settings: &PipelineSettings) -> Vec<Finding> {
    let mut found = Vec::new();
    let about = format!("publication {}", settings.publication);
    let name = quote_identifier(&settings.publication);
    if facts.selected == 0 {
        found.push(of_source_error(
            Code::NoTables,
            &SourceError::NoTables(settings.tables.clone()),
        ));
    }
    let Some(publication) = &facts.publication else {
        if let Some(create) = &facts.create {
            found.push(
                Finding::new(
                    Code::PublicationMissing,
                    &about,
                    "it does not exist in the Site DB, and the role may not create it",
                )
                .fix(format!("on the Site DB, as the tables' owner: {create};")),
            );
        } else if facts.selected > 0 {
            found.push(Finding::new(Code::PublicationLater, &about, "it does not exist yet"));
        }
        return found;
    };
    let all = "insert, update, delete, truncate";
    let rows: Vec<&str> = publication
        .unsent
        .iter()
        .copied()
        .filter(|kind| *kind != "truncate")
        .collect();
    if !rows.is_empty() {
        let what = format!("it does not send: {}", rows.join(", "));
        let fix = format!("on the Site DB: ALTER PUBLICATION {name} SET (publish = '{all}');");
        found.push(Finding::new(Code::PublicationPartial, &about, what).fix(fix));
    } else if !publication.unsent.is_empty() {
        let fix = format!("on the Site DB: ALTER PUBLICATION {name} SET (publish = '{all}');");
        found.push(Finding::new(Code::PublicationTruncate, &about, "it does not send TRUNCATE").fix(fix));
    }
    if publication.splits_partitions {
        let fix = format!("on the Site DB: ALTER PUBLICATION {name} SET (publish_via_partition_root = true);");
        found.push(
            Finding::new(
                Code::PublicationRoot,
                &about,
                "it sends partitions as tables of their own (publish_via_partition_root is off)",
            )
            .fix(fix),
        );
    }
    for (table, of) in &facts.tables {
        if of.row_filter.is_some() {
            let what = "the publication has a row filter for it";
            found.push(Finding::new(Code::RowFilter, format!("table {table}"), what));
        }
        if of.identity.is_none() {
            let what = "it has no replica identity in the Site DB (a primary key is one)";
            let fix = format!(
                "on the Site DB: ALTER TABLE {} REPLICA IDENTITY FULL; (or ADD PRIMARY KEY (…))",
                table.quoted()
            );
            found.push(Finding::new(Code::OnlyInserts, format!("table {table}"), what).fix(fix));
        } else if of.identity == Identity::Full && of.facts.unique.is_empty() {
            let what = "it has REPLICA IDENTITY FULL and no key in the Site DB";
            let fix = format!("on both sides: ALTER TABLE {} ADD PRIMARY KEY (…);", table.quoted());
            found.push(Finding::new(Code::WholeRowIdentity, format!("table {table}"), what).fix(fix));
        }
    }
    found
}

/// The tables that can't be replicated because of the Site DB.
pub(super) fn of_table_faults(
    facts: &PublicationFacts,
    selection: &Selection,
    policy: OnUnreplicableTable,
) -> Vec<Finding> {
    let is_missing = facts.publication.is_none();
    facts
        .faults
        .iter()
        // The missing publication is told once.
        .filter(|(_, hold)| !(is_missing && hold.cause == HoldCause::NotPublished))
        .map(|(table, hold)| of_hold(table, hold, selection, policy))
        .collect()
}

/// A table that the Agent DB can't be written with.
pub(super) fn of_agent_error(
    table: &TableName,
    error: &AgentError,
    selection: &Selection,
    policy: OnUnreplicableTable,
) -> Finding {
    of_hold(table, &error.hold(), selection, policy)
}

/// A held table, or one that would be held.
pub(super) fn of_hold(table: &TableName, hold: &Hold, selection: &Selection, policy: OnUnreplicableTable) -> Finding {
    let is_named = selection.names(table);
    let code = match hold.cause {
        HoldCause::TableMissing => Code::TableMissing,
        HoldCause::ColumnMissing => Code::ColumnMissing,
        HoldCause::ColumnUnwritable => Code::ColumnUnwritable,
        HoldCause::Unlogged => Code::TableUnlogged,
        HoldCause::Key => Code::TableKey,
        HoldCause::Rights => Code::TableRights,
        HoldCause::RowSecurity => Code::RowSecurity,
        HoldCause::NotPublished => Code::TableNotPublished,
        HoldCause::NotReplicable if !is_named => Code::TableNotReplicable,
        HoldCause::Claimed => Code::TableClaimed,
        HoldCause::Refused => Code::TableRefused,
        HoldCause::NotReplicable
        | HoldCause::Locked
        | HoldCause::TooSlow
        | HoldCause::TooManyFailed
        | HoldCause::Row
        | HoldCause::KeepsChanging
        | HoldCause::Unknown => Code::TableHeld,
    };
    let (what, fix) = hold.parts();
    let finding = Finding::new(code, format!("table {table}"), what).fix_if(fix.map(str::to_owned));
    // Then it is left out, as the configuration says.
    if policy == OnUnreplicableTable::Ignore && !is_named {
        finding.softened()
    } else {
        finding
    }
}

/// What fires in the Agent DB when a table is written.
pub(super) fn of_what_fires(table: &TableName, fires: &WhatFires, rights: &AgentRights) -> Vec<Finding> {
    let mut found = Vec::new();
    let grant = format!(
        "in the Agent DB (15 and later), as superuser: GRANT SET ON PARAMETER session_replication_role TO {};",
        quote_identifier(&rights.role)
    );
    if !fires.triggers.is_empty() {
        let disable: Vec<String> = fires
            .triggers
            .iter()
            .map(|trigger| {
                format!(
                    "ALTER TABLE {} DISABLE TRIGGER {};",
                    table.quoted(),
                    quote_identifier(trigger)
                )
            })
            .collect();
        let what = format!(
            "its triggers fire for replicated rows in the Agent DB: {}",
            fires.triggers.join(", ")
        );
        let or = if rights.skips_triggers {
            String::new()
        } else {
            format!("; or {grant}")
        };
        found.push(
            Finding::new(Code::TriggersFire, format!("table {table}"), what)
                .fix(format!("in the Agent DB: {}{or}", disable.join(" "))),
        );
    }
    if !fires.foreign_keys.is_empty() {
        let what = format!(
            "its foreign keys are checked for replicated rows: {}",
            fires.foreign_keys.join(", ")
        );
        found.push(Finding::new(Code::ForeignKeysChecked, format!("table {table}"), what).fix(grant));
    }
    found
}

/// Tables that the daemon itself holds, for reasons that no catalog shows. `told`: what is found already.
pub(super) fn of_held(
    held: &[(TableName, Hold)],
    told: &[Finding],
    selection: &Selection,
    policy: OnUnreplicableTable,
) -> Vec<Finding> {
    let told: BTreeSet<&str> = told.iter().map(|finding| finding.about.as_str()).collect();
    held.iter()
        .map(|(table, hold)| of_hold(table, hold, selection, policy))
        .filter(|finding| !told.contains(finding.about.as_str()))
        .collect()
}
