//! Every metric is described, recorded, and has the labels that the list says.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Records every metric once.
fn record_all() {
    let table = TableName::new("public", "leads");
    set_sync_delay(Duration::from_secs(1));
    observe_commit_to_apply(Duration::from_millis(3));
    set_lag_bytes(1);
    count_rows(&table, "insert", "applied", 1);
    set_failed_rows(&table, 1);
    count_retries("healed", 1);
    count_failed_row_events(&table, "parked", "23503", 1);
    set_slot(1, Some(2));
    set_slot_full_in(None);
    set_gap_recovery(1.0);
    set_sync_state("streaming", &["streaming", "gap"]);
    set_tables("held", 1);
    set_held_tables("rights", 1);
    set_persistence_gap("unsent", 0);
    set_verified_through(&table, 1);
    set_verified_differences(&table, 1);
    count_message("outbound", "sent");
    observe_send(Duration::from_millis(200));
    count_send_error(Some(131_047), "window");
    count_webhook_events("real", 1);
    count_refused_webhook("wrong_signature");
    set_account_last_real_message("106540352242922", 1.0);
    set_account_degraded("106540352242922", false);
    set_component_degraded("inbox", false);
    set_listeners(1);
    observe_listener_delay(Duration::from_millis(3));
    count_listener_events("behind", 1);
    count_front_end_records("error", 1);
    set_subscriber("crm", 1, 2.0);
    count_delivery("crm", "delivered");
}

#[test]
fn every_metric_is_described_and_has_the_labels_that_the_list_says() {
    let recorder = prometheus().unwrap().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        describe();
        record_all();
    });
    let text = handle.render();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, rest) = line.split_once(['{', ' ']).unwrap();
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| {
                series
                    .strip_suffix(suffix)
                    .filter(|name| ALL.iter().any(|metric| metric.name == *name))
            })
            .unwrap_or(series);
        let names = labels.entry(name.to_owned()).or_default();
        if let Some((inside, _)) = rest.split_once('}') {
            names.extend(inside.split(',').map(|pair| pair.split_once('=').unwrap().0.to_owned()));
            names.remove("le");
        }
    }
    let expected: BTreeMap<String, BTreeSet<String>> = ALL
        .iter()
        .map(|&Metric { name, kind, labels, .. }| {
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert!(text.contains(&format!("# TYPE {name} {kind}")), "{name} is no {kind}");
            (name.to_owned(), labels.iter().map(|&label| label.to_owned()).collect())
        })
        .collect();
    assert_eq!(labels, expected);
}
