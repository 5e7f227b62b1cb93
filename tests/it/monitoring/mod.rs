//! The dashboard and the alerts use only metrics and labels that the binary has, the alerts fire when they should, and
//! README.md and grafana/README.md list what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use twinlog::metrics::{ALL, Kind};
use twinlog::replication::SyncState;

/// Labels that Prometheus adds, or that a histogram's buckets have.
const FOREIGN: [&str; 3] = ["job", "instance", "le"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("grafana/dashboard.json")).unwrap()
}

/// The panels that show something, rows left out.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

/// Every label that a query may name.
fn labels() -> BTreeSet<&'static str> {
    let ours = ALL.iter().flat_map(|metric| metric.labels).copied();
    ours.chain(FOREIGN).collect()
}

fn labels_of(metric: &str) -> &'static [&'static str] {
    ALL.iter()
        .find(|known| known.name == metric)
        .map_or(&[], |known| known.labels)
}

/// Every word of ours in a text, as written.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("twinlog_"))
        .collect()
}

/// The metric behind a series' name; a histogram has only the series that the exporter makes of it.
fn metric_of(series: &str) -> Option<&'static str> {
    ALL.iter().find_map(|metric| {
        let name = metric.name;
        let matches = if metric.kind == Kind::Histogram {
            ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| series.strip_suffix(suffix) == Some(name))
        } else {
            series == name
        };
        matches.then_some(name)
    })
}

/// The text in the parentheses after each `word (`.
fn lists<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    text.match_indices(&format!("{word} ("))
        .map(|(at, found)| {
            let inside = &text[at + found.len()..];
            &inside[..inside.find(')').unwrap()]
        })
        .collect()
}

/// Checks the series, their matchers and the groupings of queries.
fn check_queries(text: &str) {
    for word in words(text) {
        assert!(metric_of(word).is_some(), "{word} is no series of ours");
    }
    let known = labels();
    for word in ["by", "on"] {
        for label in lists(text, word).iter().flat_map(|list| list.split(',')) {
            assert!(known.contains(label.trim()), "nothing has the label {label:?}: {text}");
        }
    }
    for (at, _) in text.match_indices('{') {
        let name = text[..at]
            .rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .next()
            .unwrap();
        let Some(metric) = metric_of(name) else { continue };
        let inside = &text[at + 1..at + text[at..].find('}').unwrap()];
        for matcher in inside.split(',') {
            let end = matcher
                .find(['=', '!'])
                .unwrap_or_else(|| panic!("{matcher:?} is no matcher"));
            let (label, value) = (
                matcher[..end].trim(),
                matcher[end..].trim_start_matches(['=', '!', '~']),
            );
            assert!(
                FOREIGN.contains(&label) || labels_of(metric).contains(&label),
                "{metric} has no label {label:?}"
            );
            let value = value.trim_matches(['"', '\\']);
            if label == "state" {
                assert!(SyncState::ALL.contains(&value), "there is no state {value:?}");
            }
            if metric == twinlog::metrics::PERSISTENCE_GAP && label == "kind" {
                assert!(
                    is_counted("set_persistence_gap", value),
                    "nothing counts the gap {value:?}"
                );
            }
        }
    }
}

/// Whether the sources call a function of the metrics with this text.
fn is_counted(function: &str, text: &str) -> bool {
    let mut folders = vec![path("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path)
                .unwrap()
                .contains(&format!("metrics::{function}(\"{text}\""))
            {
                return true;
            }
        }
    }
    false
}

#[test]
fn the_dashboard_asks_for_series_and_labels_that_exist() {
    let dashboard = dashboard();
    let mut shown = BTreeSet::new();
    for panel in panels(&dashboard) {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{} shows nothing", panel["title"]);
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            check_queries(query);
            shown.extend(words(query).into_iter().filter_map(metric_of));
            // What a legend shows must be left by the query's grouping, or be a label of the series.
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1) {
                let label = label.split("}}").next().unwrap().trim();
                let grouped: Vec<&str> = lists(query, "by").iter().flat_map(|list| list.split(", ")).collect();
                let plain = words(query)
                    .into_iter()
                    .filter_map(metric_of)
                    .any(|metric| FOREIGN.contains(&label) || labels_of(metric).contains(&label));
                assert!(
                    if grouped.is_empty() {
                        plain
                    } else {
                        grouped.contains(&label)
                    },
                    "{}: the legend's {label:?} is not in {query}",
                    panel["title"]
                );
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        check_queries(variable["definition"].as_str().unwrap_or_default());
    }
    let all: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(shown, all, "the dashboard shows every metric");
}

#[test]
fn the_dashboard_can_be_imported_with_any_prometheus() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 38, "Grafana 10");
    assert!(dashboard["id"].is_null(), "an id belongs to one Grafana");
    let variable = &dashboard["templating"]["list"][0];
    assert_eq!(
        (&variable["name"], &variable["type"]),
        (&"datasource".into(), &"datasource".into())
    );
    let mut ids = BTreeSet::new();
    let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id stands twice"
        );
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title} is beyond the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            if let Some(other) = taken.insert(cell, title) {
                panic!("{title} lies on {other}");
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

#[test]
fn the_alerts_ask_for_series_and_labels_that_exist_and_say_what_to_do() {
    let alerts = read("grafana/alerts.yml");
    check_queries(&alerts);
    let known = labels();
    for rest in alerts.split("$labels.").skip(1) {
        let label = rest.split([' ', '}']).next().unwrap();
        assert!(known.contains(label), "nothing has the label {label:?}");
    }
    for rule in alerts.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        for part in ["expr: ", "labels: { severity: ", "summary: \"", "description: >-"] {
            assert_eq!(rule.matches(part).count(), 1, "{name}: {part}");
        }
    }
}

#[test]
fn the_alerts_fire_when_they_should_and_are_quiet_when_all_is_well() {
    let available = Command::new("promtool")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !available.is_ok_and(|status| status.success()) {
        eprintln!("not checked: promtool is not installed (it comes with prometheus)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("alerts.test.yml");
    let rules = path("grafana/alerts.yml");
    let tests = read("tests/it/monitoring/alerts.test.yml").replace("- ALERTS", &format!("- {}", rules.display()));
    std::fs::write(&file, tests).unwrap();
    for (action, file) in [("check", &rules), ("test", &file)] {
        let output = Command::new("promtool")
            .args([action, "rules"])
            .arg(file)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "promtool {action}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The rows of the table in a Markdown text whose first cell is in backticks and satisfies the condition.
fn table(text: &str, wanted: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|line| {
            line.split(" | ")
                .map(|cell| cell.trim().trim_end_matches('`').to_owned())
                .collect()
        })
        .filter(|cells: &Vec<String>| wanted(&cells[0]))
        .collect()
}

#[test]
fn the_readme_lists_every_metric_with_its_kind_and_labels() {
    let listed: Vec<Vec<String>> = table(&read("README.md"), |name| name.starts_with("twinlog_"));
    let expected: Vec<Vec<String>> = ALL
        .iter()
        .map(|metric| {
            vec![
                metric.name.to_owned(),
                metric.kind.to_string(),
                metric.labels.join(", "),
                metric.help.to_owned(),
            ]
        })
        .collect();
    let print = |rows: &[Vec<String>]| {
        let rows: Vec<String> = rows
            .iter()
            .map(|cells| format!("| `{}` | {} |", cells[0], cells[1..].join(" | ")))
            .collect();
        rows.join("\n")
    };
    assert!(listed == expected, "README.md should have\n{}", print(&expected));
}

#[test]
fn grafanas_readme_lists_every_panel_and_every_alert() {
    let text = read("grafana/README.md");
    let listed = |heading: &str| -> Vec<String> {
        let part = text
            .split(heading)
            .nth(1)
            .unwrap_or_else(|| panic!("there is no {heading:?}"));
        let part = part.split("\n## ").next().unwrap();
        part.lines()
            .filter_map(|line| line.strip_prefix("| "))
            .map(|line| line.split(" | ").next().unwrap().trim_matches('`').to_owned())
            .skip(1)
            .collect()
    };
    let dashboard = dashboard();
    let titles: Vec<&str> = panels(&dashboard)
        .iter()
        .map(|panel| panel["title"].as_str().unwrap())
        .collect();
    assert_eq!(listed("\n## Panels"), titles);
    let alerts = read("grafana/alerts.yml");
    let names: Vec<&str> = alerts
        .split("- alert: ")
        .skip(1)
        .map(|rule| rule.lines().next().unwrap())
        .collect();
    assert_eq!(listed("\n## Alerts"), names);
}
