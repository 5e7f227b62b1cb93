//! Keys that the Site DB holds for one and the Agent DB keeps apart: what only the Agent DB has of them is found, and deleted.

use serde_json::json;

use super::{of_table, verify};
use crate::harness::Twins;

/// The key's type in the Site DB and in the Agent DB, a key of the Site DB, and one that the Site DB would find by it and the Agent
/// DB has beside it, as the Agent DB prints that.
const MERGED: &[(&str, &str, &str, &str, &str)] = &[
    ("days", "date", "timestamptz", "2024-01-30", "2024-01-30 12:00:00+00"),
    ("blanks", "char(3)", "text", "b", "b"),
    ("cased", "public.citext", "text", "b", "B"),
    ("digits", "int", "text", "7", "07"),
    ("points", "numeric", "text", "1.5", "1.50"),
];

/// The same, for keys that are one in both databases: the Agent DB has its own spelling of them.
const ONE: &[(&str, &str, &str, &str, &str)] = &[
    (
        "midnights",
        "date",
        "timestamptz",
        "2024-01-30",
        "2024-01-30 00:00:00+00",
    ),
    ("padded", "char(3)", "char(5)", "b", "b    "),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_extra_row_is_found_and_deleted_though_the_site_db_would_hold_its_key_for_one_that_it_has() {
    let twins = Twins::new("CREATE EXTENSION citext SCHEMA public").await;
    let (mut site, mut agent, mut extra) = (String::new(), String::new(), String::new());
    for (name, on_site, on_agent, key, other) in MERGED.iter().chain(ONE) {
        site += &format!(
            "CREATE TABLE {name} (k {on_site}, n int, v text, PRIMARY KEY (k, n));
             INSERT INTO {name} VALUES ('{key}', 1, 'x'), ('{key}', 2, 'x');"
        );
        // What is deleted and inserted again loses its note.
        agent += &format!("CREATE TABLE {name} (k {on_agent}, n int, v text, note text, PRIMARY KEY (k, n));");
        if MERGED.iter().any(|(merged, ..)| merged == name) {
            extra += &format!("INSERT INTO {name} VALUES ('{other}', 1, 'x');");
        }
    }
    tokio::join!(twins.on_site(&site), twins.on_agent(&agent));
    let _daemon = twins.start().await;
    let names = || MERGED.iter().chain(ONE).map(|(name, ..)| *name);
    for name in names() {
        twins.until_table(name, "streaming", 2).await;
        twins.on_agent(&format!("UPDATE {name} SET note = 'kept'")).await;
    }
    let (good, answer) = verify(&twins, &["--all"]).await;
    assert!(good && answer["equal"] == true, "{answer}");

    // WHEN the Agent DB has such rows, THEN they are the only difference, and a resync deletes them, and a repair as well
    for mend in [&["resync", "--all", "--wait"][..], &["verify", "--all", "--repair"]] {
        twins.on_agent(&extra).await;
        let (good, answer) = verify(&twins, &["--all"]).await;
        for (name, _, _, _, other) in MERGED {
            assert_eq!(
                of_table(&answer, &format!("public.{name}")),
                json!({ "missing": [], "extra": [[other, "1"]], "different": [] }),
                "{answer}"
            );
        }
        for (name, ..) in ONE {
            let found = of_table(&answer, &format!("public.{name}"));
            assert_eq!(found, json!({ "missing": [], "extra": [], "different": [] }), "{name}");
        }
        assert!(!good, "{answer}");
        twins.succeeds(mend).await;
        for name in names() {
            let kept = format!("SELECT count(*) || ' ' || count(*) FILTER (WHERE note = 'kept') FROM {name}");
            assert_eq!(twins.agent.value(&kept).await, "2 2", "{name} after {mend:?}");
        }
        let (good, answer) = verify(&twins, &["--all"]).await;
        assert!(good && answer["equal"] == true, "{answer}");
    }
}
