//! The pitfalls of Postgres replication that other systems met, and the test that shows that we do not: [`COVERED`] names
//! them, P1 to P43, as the project's notes number them. Tests that belong to no other area are in the folders below.

mod rows;
mod slot;
mod target;

use std::collections::BTreeSet;
use std::path::Path;

use crate::architecture::rust_files;

/// What shows that Twinlog avoids a pitfall.
enum Because {
    /// These tests, as paths: `tests/it` modules and unit tests of `src` alike.
    Tests(&'static [&'static str]),
    /// These tests as far as the feature goes, and why that is all.
    Except(&'static [&'static str], &'static str),
}

use Because::{Except, Tests};

/// Each pitfall in a few words, and the tests that show that Twinlog avoids it.
const COVERED: &[(u32, &str, Because)] = &[
    (
        1,
        "keepalive acknowledged too lazily or too eagerly",
        Tests(&[
            "replication::stream::progress::tests::nothing_is_acknowledged_before_it_is_durable",
            "replication::stream::progress::tests::an_idle_keepalive_moves_the_slot_on_and_a_busy_one_does_not",
            "sync::gap::an_idle_slot_advances_while_only_unpublished_tables_are_written",
            "wire::stream::the_slot_moves_to_what_is_durable_and_not_beyond",
        ]),
    ),
    (
        2,
        "a heartbeat that never reaches the slot",
        Tests(&["sync::gap::an_idle_slot_advances_while_only_unpublished_tables_are_written"]),
    ),
    (
        3,
        "a recreated slot is trusted",
        Tests(&[
            "replication::continuity::tests::everything_that_could_hide_missing_rows_is_a_gap",
            "sync::gap::a_dropped_slot_is_a_gap_until_everything_was_read_again",
            "sync::gap::a_slot_that_is_recreated_under_the_running_daemon_is_a_gap",
            "sync::gap::a_slot_that_was_advanced_by_hand_is_a_gap_that_a_restart_does_not_heal",
        ]),
    ),
    (
        4,
        "the greater of two positions after a restore or failover",
        Tests(&[
            "pitfalls::slot::a_site_db_that_was_restored_from_a_backup_is_a_gap",
            "replication::continuity::tests::everything_that_could_hide_missing_rows_is_a_gap",
            "replication::continuity::tests::a_failover_that_lost_nothing_goes_on",
        ]),
    ),
    (
        5,
        "positions of rows compared",
        Tests(&[
            "replication::stream::assemble::tests::what_was_durable_before_is_left_out_by_its_commit_and_not_by_its_rows",
            "agent_db::session::the_checkpoint_is_the_rows_own_and_only_moves_forward",
        ]),
    ),
    (
        6,
        "several rows share one position",
        Tests(&["pitfalls::slot::rows_that_share_one_position_are_applied_all_or_none"]),
    ),
    (
        7,
        "the last transaction repeated or skipped",
        Tests(&[
            "replication::stream::assemble::tests::what_was_durable_before_is_left_out_by_its_commit_and_not_by_its_rows",
            "sync::kills::a_daemon_killed_at_each_durability_edge_converges",
        ]),
    ),
    (
        8,
        "the position moves in an error's cleanup",
        Tests(&[
            "agent_db::session::the_checkpoint_is_the_rows_own_and_only_moves_forward",
            "agent_db::session::a_call_that_was_dropped_half_way_must_be_rolled_back",
            "sync::kills::a_walsender_that_is_killed_is_replaced_and_nothing_is_lost",
        ]),
    ),
    (
        9,
        "copied rows not durable when the slot goes on",
        Tests(&[
            "sync::kills::a_daemon_killed_at_each_durability_edge_converges",
            "agent_db::session::a_copys_progress_is_committed_with_its_rows",
            "replication::continuity::tests::the_first_start_creates_or_adopts",
        ]),
    ),
    (
        10,
        "transactions in flight when a table joins",
        Tests(&[
            "sync::joining::a_table_that_is_added_to_the_publication_brings_rows_of_transactions_that_ran_before",
            "sync::joining::a_table_that_is_created_under_all_tables_brings_rows_of_transactions_that_ran_before",
            "sync::joining::a_table_that_joins_waits_for_the_youngest_running_transaction_too",
        ]),
    ),
    (
        11,
        "a slot older than its publication",
        Tests(&[
            "pitfalls::slot::a_publication_that_was_missing_for_a_while_is_named_and_a_new_slot_recovers",
            "wire::refusals::a_missing_publication_is_an_error_of_the_stream",
        ]),
    ),
    (
        12,
        "an idle transaction holds a slot's creation up",
        Tests(&[
            "pitfalls::slot::an_idle_transaction_that_delays_the_slots_creation_is_named",
            "wire::refusals::an_open_transaction_delays_a_slots_creation_no_longer_than_the_limit",
        ]),
    ),
    (
        13,
        "a slot still active for a dead connection",
        Tests(&[
            "pitfalls::slot::the_connection_of_a_dead_daemon_is_ended_and_its_slot_taken_over",
            "pitfalls::slot::a_connection_of_another_program_keeps_the_slot",
            "agent_db::session::a_daemon_that_vanishes_in_the_middle_of_a_statement_frees_the_lock",
            "sync::setup::of_two_daemons_one_stands_by_and_takes_over",
        ]),
    ),
    (
        14,
        "a lost slot is fatal, or retried for ever",
        Tests(&[
            "sync::gap::a_slot_that_lost_its_wal_is_a_gap",
            "wire::refusals::a_slot_whose_wal_is_gone_is_a_typed_error",
        ]),
    ),
    (
        15,
        "copying on without the slot",
        Tests(&["pitfalls::slot::a_copy_stops_when_its_slot_is_gone"]),
    ),
    (
        16,
        "a health check that decodes",
        Tests(&["pitfalls::nothing_but_the_stream_decodes_the_log"]),
    ),
    (
        17,
        "the walsender's time-out during a long apply",
        Tests(&[
            "pitfalls::slot::an_agent_db_that_is_blocked_for_long_does_not_lose_the_stream",
            "wire::fake::reports_go_on_while_the_consumer_takes_nothing",
            "wire::stream::a_consumer_that_takes_nothing_does_not_lose_the_connection",
        ]),
    ),
    (
        18,
        "a copy that depends on one long snapshot",
        Tests(&["sync::copying::a_large_copy_that_is_killed_twice_goes_on_where_it_stopped_while_everything_changes"]),
    ),
    (
        19,
        "an unchanged TOAST value becomes NULL",
        Tests(&[
            "sync::basics::an_unchanged_toast_value_survives_every_path",
            "agent_db::rows::an_unchanged_value_is_never_overwritten",
            "pitfalls::rows::rows_that_are_identified_as_a_whole_are_found_by_their_key",
        ]),
    ),
    (
        20,
        "compaction loses TOAST values",
        Tests(&[
            "change::coalesce::tests::folding_then_applying_equals_applying_one_by_one",
            "agent_db::apply::plan::tests::planned_and_applied_equals_one_by_one",
        ]),
    ),
    (
        21,
        "a partial update finds no row",
        Tests(&[
            "agent_db::rows::a_partial_image_after_a_delete_in_the_same_segment_does_not_make_a_row",
            "agent_db::rows::a_missing_base_in_a_table_that_is_being_copied_is_superseded",
            "agent_db::parking::a_parked_key_is_healed_from_the_site_row",
        ]),
    ),
    (
        22,
        "a key that is kept out of line",
        Tests(&[
            "pitfalls::rows::a_key_that_is_kept_out_of_line_identifies_its_row",
            "replication::stream::assemble::tests::a_row_without_its_key_is_refused_and_never_given_one",
        ]),
    ),
    (
        23,
        "a changed key leaves the old row",
        Tests(&[
            "agent_db::rows::a_changed_key_leaves_no_row_behind_and_keeps_columns_of_the_agents_own",
            "agent_db::rows::rows_swap_their_keys_through_a_third_one",
        ]),
    ),
    (
        24,
        "secondary unique constraints",
        Tests(&[
            "agent_db::rows::unique_values_cross_between_rows_without_parking",
            "agent_db::property::any_history_in_any_segments_ends_in_the_same_table",
        ]),
    ),
    (
        25,
        "ON CONFLICT hits a row twice",
        Tests(&[
            "agent_db::apply::plan::tests::planned_and_applied_equals_one_by_one",
            "agent_db::rows::a_keys_changes_fold_into_one_row_and_all_are_accounted_for",
        ]),
    ),
    (
        26,
        "TRUNCATE ignored",
        Tests(&[
            "sync::basics::truncate_is_applied_in_order",
            "pitfalls::rows::several_tables_are_truncated_together_and_in_order",
            "agent_db::rows::a_truncate_of_a_table_that_others_refer_to_is_refused_loudly",
        ]),
    ),
    (
        27,
        "generated and identity columns",
        Tests(&[
            "pitfalls::rows::generated_and_identity_columns_pass_through_copy_stream_and_resync",
            "agent_db::rows::generated_and_identity_columns_are_left_to_the_agent_or_taken_as_they_come",
        ]),
    ),
    (
        28,
        "values decoded, printed or read as others",
        Tests(&[
            "pitfalls::rows::values_survive_hostile_settings_on_both_sides_in_copy_and_stream",
            "agent_db::values::every_types_values_survive_untouched",
            "wire::stream::values_are_printed_under_our_settings_whatever_the_database_says",
        ]),
    ),
    (
        29,
        "NUL and encodings",
        Tests(&["pitfalls::rows::texts_in_no_encoding_are_parked_one_by_one_and_healed_once_they_are_right"]),
    ),
    (
        30,
        "triggers and foreign keys of the target",
        Tests(&[
            "pitfalls::target::triggers_fire_as_they_are_enabled_for_replicas",
            "agent_db::fallback::parents_are_written_before_children_and_deleted_after_them",
            "agent_db::fallback::children_of_a_parked_parent_wait_for_it",
            "agent_db::fallback::a_triggers_objection_parks_the_row_that_provoked_it",
        ]),
    ),
    (
        31,
        "row-level security",
        Tests(&[
            "pitfalls::target::row_level_security_on_the_site_is_an_error_and_not_an_empty_copy",
            "agent_db::fallback::row_level_security_holds_instead_of_hiding_rows",
        ]),
    ),
    (
        32,
        "REPLICA IDENTITY FULL that matches nothing",
        Except(
            &[
                "pitfalls::rows::rows_that_are_identified_as_a_whole_are_found_by_their_key",
                "sync::setup::tables_that_do_not_fit_are_named_one_after_another",
            ],
            "a row is always found by the Agent DB's primary key; a table without one is refused at the set-up, so that \
             duplicates can't be met",
        ),
    ),
    (
        33,
        "DDL changes a table silently",
        Tests(&[
            "pitfalls::rows::a_table_that_was_dropped_and_created_again_is_read_again",
            "pitfalls::rows::a_table_that_left_the_publication_and_came_back_is_read_again",
            "pitfalls::rows::a_column_that_comes_later_brings_the_values_that_no_change_carries",
            "agent_db::parking::a_not_null_column_that_only_the_agent_db_has_holds_and_never_parks",
        ]),
    ),
    (
        34,
        "a partition's columns taken for its parent's",
        Tests(&[
            "sync::copying::a_partitioned_table_arrives_as_one_whatever_partition_a_row_moves_to",
            "agent_db::rows::rows_move_between_partitions",
        ]),
    ),
    (
        35,
        "a resync brings older or deleted rows back",
        Tests(&[
            "copy::window::tests::a_chunk_merged_with_the_stream_equals_the_serial_history",
            "sync::resync::rows_that_are_deleted_while_resyncs_run_never_come_back",
            "sync::unseen::a_new_run_reads_no_rows_before_commits_that_wait_for_a_standby_are_visible",
            "sync::spelling::a_parked_row_that_comes_back_under_another_spelling_of_its_key_stays",
        ]),
    ),
    (
        36,
        "a resync truncates first",
        Tests(&["sync::resync::a_resync_mends_every_damage_and_readers_never_see_the_table_empty"]),
    ),
    (
        37,
        "drop and continue",
        Tests(&[
            "agent_db::parking::a_refused_row_is_parked_and_the_other_rows_are_applied",
            "agent_db::property::any_history_with_refused_rows_converges_once_they_are_healed",
        ]),
    ),
    (
        38,
        "a position committed over a row that is nowhere",
        Tests(&[
            "agent_db::session::a_session_that_has_lost_its_connection_cannot_commit",
            "agent_db::session::a_commit_whose_answer_is_lost_is_unknown_and_its_checkpoint_tells",
            "sync::kills::a_daemon_that_is_killed_again_and_again_loses_and_repeats_nothing",
        ]),
    ),
    (
        39,
        "a systemic error parks everything",
        Tests(&[
            "postgres::sqlstate::tests::every_class_that_matters_has_its_disposition",
            "sync::systemic::an_agent_db_that_is_read_only_holds_the_stream_and_parks_nothing",
            "sync::systemic::a_right_that_is_revoked_in_mid_stream_holds_the_stream_and_parks_nothing",
            "sync::systemic::more_parked_rows_than_are_allowed_hold_the_stream_with_the_reason",
        ]),
    ),
    (
        40,
        "a single bad row halts everything",
        Tests(&[
            "sync::basics::a_row_that_only_the_agent_refuses_is_parked_and_healed_after_the_constraint_goes",
            "agent_db::parking::a_refused_row_is_parked_and_the_other_rows_are_applied",
        ]),
    ),
    (
        41,
        "a verification's false alarms",
        Except(
            &["sync::copying::text_keys_are_copied_and_compared_whatever_the_collations_of_both_sides"],
            "`twinlog verify` is not built yet; a resync compares the same protocol texts under the same settings",
        ),
    ),
    (
        42,
        "a gauge of lag that lies",
        Tests(&[
            "pitfalls::target::the_delay_is_zero_when_idle_and_grows_while_either_database_is_unreachable",
            "replication::status::delay::tests::is_zero_only_when_the_latest_sample_is_settled",
            "replication::status::delay::tests::grows_while_the_source_cannot_be_asked",
        ]),
    ),
    (
        43,
        "a predecessor's unflushed commit is acknowledged",
        Tests(&[
            "pitfalls::slot::an_earlier_daemons_unflushed_commit_is_made_durable_before_it_is_acknowledged",
            "agent_db::session::synchronous_commit_is_raised_where_the_database_has_it_off",
        ]),
    ),
];

/// All test functions of the tree, as `module::path::function`.
fn tests_of_the_tree() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "tests/it"] {
        let folder = root.join(folder);
        for file in rust_files(&folder) {
            let mut path: Vec<String> = file
                .strip_prefix(&folder)
                .unwrap()
                .with_extension("")
                .components()
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
                .collect();
            if path.last().is_some_and(|last| last == "mod") {
                path.pop();
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let (mut is_test, mut within) = (false, None);
            for line in text.lines() {
                let line = line.trim_start();
                if line.starts_with("mod tests {") {
                    within = Some("tests");
                }
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let function = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
                if let Some(function) = function {
                    let name = function.split(['(', '<']).next().unwrap_or_default();
                    if std::mem::take(&mut is_test) {
                        let parts = path.iter().map(String::as_str).chain(within).chain([name]);
                        found.insert(parts.collect::<Vec<_>>().join("::"));
                    }
                }
            }
        }
    }
    found
}

#[test]
fn every_pitfall_has_a_test_that_exists() {
    let numbers: Vec<u32> = COVERED.iter().map(|&(number, ..)| number).collect();
    assert_eq!(numbers, (1..=43).collect::<Vec<_>>());
    let known = tests_of_the_tree();
    let mut wrong = Vec::new();
    for (number, what, because) in COVERED {
        let (tests, reason) = match because {
            Tests(tests) => (tests, None),
            Except(tests, reason) => (tests, Some(reason)),
        };
        if (tests.is_empty() && reason.is_none()) || reason.is_some_and(|reason| reason.is_empty()) {
            wrong.push(format!("P{number} ({what}): no test covers it"));
        }
        for test in tests.iter().filter(|&&test| !known.contains(test)) {
            wrong.push(format!("P{number} ({what}): there is no test {test}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_but_the_stream_decodes_the_log() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let decoding: Vec<_> = rust_files(&root)
        .into_iter()
        .filter(|file| {
            // pg_logical_slot_peek_changes, …_get_changes and their binary forms.
            std::fs::read_to_string(file).unwrap().contains("pg_logical_slot_")
        })
        .collect();
    assert!(decoding.is_empty(), "{decoding:?}");
}
