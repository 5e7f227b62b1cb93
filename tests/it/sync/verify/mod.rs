//! `twinlog verify`: exactly what differs, while both databases are written, and nothing else; and its repair.

mod interrupted;
mod keys;
mod merged_keys;
mod unproved;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twinlog::failpoint::name::{REPAIR_AFTER_READ, REPAIR_AFTER_WRITE};

use crate::harness::{Background, Databases, NOTES, SOON, Twins, eventually_is};

/// A table with values that are easily changed without a trace and keys that both databases sort alike, one with keys of which
/// that is not known, and one whose rows no key tells apart.
const SCHEMA: &str = "
CREATE TABLE t (id bigint PRIMARY KEY, name text, amount numeric, seen timestamptz, doc json, ratio float8, code char(4));
CREATE TABLE words (key text PRIMARY KEY, v text);
CREATE TABLE plain (v text, n int);
ALTER TABLE plain REPLICA IDENTITY FULL";

/// What the Agent DB chose to have in its own way: that is no difference.
const OTHER_TYPES: &str = "
ALTER TABLE t ALTER amount TYPE numeric(10,2), ALTER doc TYPE jsonb USING doc::text::jsonb, ADD note text DEFAULT 'mine', ALTER id TYPE int";

/// Rows of `t`: the even ones are written all the time, the odd ones are left alone.
const ROWS: i64 = 3000;

async fn filled() -> Twins {
    let twins = Twins::new(SCHEMA).await.with("sync.copy_chunk_rows = 500");
    twins.on_agent(OTHER_TYPES).await;
    twins
        .on_site(&format!(
            "INSERT INTO t SELECT i, 'name ' || i, i + 0.5, timestamptz '2024-01-01' + i * interval '1 microsecond',
                 format('{{\"b\": %s,  \"a\": 1}}', i)::json, 0, 'ab' FROM generate_series(1, {ROWS}) i;
             INSERT INTO words SELECT 'word ' || i, i FROM generate_series(1, 700) i;
             INSERT INTO plain SELECT 'v' || i % 200, NULLIF(i % 200, 7) FROM generate_series(1, 600) i"
        ))
        .await;
    twins
}

/// Runs `twinlog verify`; returns whether it exits with 0, and what it says.
async fn verify(twins: &Twins, options: &[&str]) -> (bool, Value) {
    let arguments = [&["verify", "--json"], options].concat();
    let (status, output) = twins.run(&arguments).await;
    (status.success(), answer(&output))
}

fn answer(output: &str) -> Value {
    let line = output.lines().find(|line| line.contains("\"tables\":"));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no answer: {output}"))).unwrap()
}

/// What an answer says of a table, lists in any order.
fn of_table(answer: &Value, name: &str) -> Value {
    let tables = answer["tables"].as_array().unwrap();
    let table = tables.iter().find(|table| table["table"] == name);
    let table = table.unwrap_or_else(|| panic!("{name}: {answer}"));
    json!({
        "missing": sorted(&table["missing"]), "extra": sorted(&table["extra"]), "different": sorted(&table["different"]),
    })
}

fn sorted(list: &Value) -> Value {
    let mut items: Vec<Value> = list.as_array().unwrap().clone();
    items.sort_by_key(Value::to_string);
    Value::Array(items)
}

/// Clients that change the even rows, insert and delete, all the time.
async fn load(twins: &Twins) -> Background<()> {
    let writer = twins.site.connect().await;
    Background::start(|rounds| async move {
        let mut at = 0_i64;
        while rounds.go_on() {
            at += 1;
            let (one, other) = (at * 7919 % (ROWS / 2) * 2 + 2, at * 104_729 % (ROWS / 2) * 2 + 2);
            let sql = format!(
                "UPDATE t SET name = 'changed {at}', amount = {at} WHERE id = {one};
                 DELETE FROM t WHERE id = {other};
                 INSERT INTO t (id, name) VALUES ({one}, 'back') ON CONFLICT DO NOTHING;
                 UPDATE t SET id = {one} WHERE id = {other} + 2 AND NOT EXISTS (SELECT FROM t WHERE id = {one});
                 UPDATE words SET v = '{at}' WHERE key = 'word ' || {at} % 300 + 400;
                 INSERT INTO plain VALUES ('w{}', 1); DELETE FROM plain WHERE v = 'w{}'",
                at % 50,
                (at + 25) % 50
            );
            writer.batch_execute(&sql).await.unwrap();
            rounds.count();
        }
    })
}

/// A small generator, so that a seed says what a run does.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn seed() -> u64 {
    let given = std::env::var("TWINLOG_VERIFY_SEED").ok();
    let seed = given.and_then(|seed| seed.parse().ok());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    seed.unwrap_or(now.as_micros() as u64 | 1)
}

/// What a verification must find.
#[derive(Default)]
struct Wanted {
    missing: Vec<Value>,
    extra: Vec<Value>,
    different: Vec<Value>,
    missing_words: Vec<Value>,
    extra_words: Vec<Value>,
    different_words: Vec<Value>,
    missing_plain: Vec<Value>,
    extra_plain: Vec<Value>,
}

/// Damages odd rows of the Agent DB, each in one way, and copies of rows that have no key.
async fn corrupt(databases: &Databases, random: &mut Random, wanted: &mut Wanted) {
    let mut used = BTreeSet::new();
    let mut row = |random: &mut Random| loop {
        let id = (random.next() % (ROWS as u64 / 2)) as i64 * 2 + 1;
        if used.insert(id) {
            return id;
        }
    };
    let mut sql = String::new();
    let different = |id: i64, columns: &[&str]| json!({ "key": [id.to_string()], "columns": columns });
    for _ in 0..3 {
        let id = row(random);
        sql += &format!("DELETE FROM t WHERE id = {id};");
        wanted.missing.push(json!([id.to_string()]));
        let id = ROWS + 1 + row(random);
        sql += &format!("INSERT INTO t (id, name) VALUES ({id}, 'only here');");
        wanted.extra.push(json!([id.to_string()]));
        for (change, columns) in [
            ("name = 'wrong'", ["name"].as_slice()),
            ("name = NULL", &["name"]),
            ("name = name || ' '", &["name"]),
            ("name = ''", &["name"]),
            ("amount = amount + 0.01", &["amount"]),
            ("ratio = '-0'", &["ratio"]),
            ("seen = seen + interval '1 microsecond'", &["seen"]),
            ("doc = doc || '{\"c\": null}'", &["doc"]),
            ("code = 'abc', amount = NULL", &["amount", "code"]),
        ] {
            let id = row(random);
            sql += &format!("UPDATE t SET {change} WHERE id = {id};");
            wanted.different.push(different(id, columns));
        }
        // Two rows exchange their keys.
        let (one, other) = (row(random), row(random));
        sql += &format!(
            "UPDATE t SET id = -1 WHERE id = {one}; UPDATE t SET id = {one} WHERE id = {other}; UPDATE t SET id = {other} WHERE id = -1;"
        );
        for id in [one, other] {
            wanted.different.push(different(id, &["amount", "doc", "name", "seen"]));
        }
        // What the Agent DB has of its own is not looked at.
        let id = row(random);
        sql += &format!("UPDATE t SET note = 'other' WHERE id = {id};");
    }
    // A key that is spelled otherwise is another key.
    let gone = 1 + random.next() % 300;
    let (wrong, blank) = (gone + 1, gone + 2);
    sql += &format!(
        "DELETE FROM words WHERE key = 'word {gone}'; UPDATE words SET v = NULL WHERE key = 'word {wrong}';
         UPDATE words SET key = key || ' ' WHERE key = 'word {blank}'; INSERT INTO words VALUES ('Word {gone}');"
    );
    let word = |number: u64| json!([format!("word {number}")]);
    wanted.missing_words.extend([word(gone), word(blank)]);
    wanted
        .extra_words
        .extend([json!([format!("word {blank} ")]), json!([format!("Word {gone}")])]);
    wanted
        .different_words
        .push(json!({ "key": word(wrong), "columns": ["v"] }));
    // Each of them is there three times.
    let (more, less) = (random.next() % 100, 100 + random.next() % 100);
    let shown = |v: u64| json!([format!("v{v}"), (v != 7).then(|| v.to_string())]);
    sql += &format!("INSERT INTO plain SELECT * FROM plain WHERE v = 'v{more}' LIMIT 2;");
    sql += &format!("DELETE FROM plain WHERE ctid = (SELECT min(ctid) FROM plain WHERE v = 'v{less}');");
    sql += "INSERT INTO plain VALUES ('only here', NULL);";
    wanted
        .extra_plain
        .extend([shown(more), shown(more), json!(["only here", null])]);
    wanted.missing_plain.push(shown(less));
    for row in &mut wanted.different {
        let mut columns: Vec<Value> = row["columns"].as_array().unwrap().clone();
        columns.sort_by_key(Value::to_string);
        row["columns"] = Value::Array(columns);
    }
    databases.on_agent(&sql).await;
}

/// Asserts that a verification has found exactly this.
fn assert_found(answer: &Value, wanted: &Wanted, seed: u64) {
    let mut found = of_table(answer, "public.t");
    for row in found["different"].as_array_mut().unwrap() {
        row["columns"] = sorted(&row["columns"]);
    }
    found["different"] = sorted(&found["different"]);
    let list = |values: &[Value]| sorted(&Value::Array(values.to_vec()));
    assert_eq!(
        found,
        json!({
            "missing": list(&wanted.missing), "extra": list(&wanted.extra), "different": list(&wanted.different),
        }),
        "seed {seed}"
    );
    assert_eq!(
        of_table(answer, "public.words"),
        json!({
            "missing": list(&wanted.missing_words), "extra": list(&wanted.extra_words),
            "different": list(&wanted.different_words),
        }),
        "seed {seed}"
    );
    assert_eq!(
        of_table(answer, "public.plain"),
        json!({ "missing": list(&wanted.missing_plain), "extra": list(&wanted.extra_plain), "different": [] }),
        "seed {seed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_exactly_what_was_damaged_is_found_then_repaired_then_equal() {
    let seed = seed();
    println!("TWINLOG_VERIFY_SEED={seed}");
    let mut random = Random(seed);
    let seconds = std::env::var("TWINLOG_VERIFY_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let twins = filled().await;
    let _daemon = twins.start().await;
    twins.until_table("plain", "streaming", 600).await;
    twins.until_table("t", "streaming", ROWS).await;
    twins.until_table("words", "streaming", 700).await;
    let load = load(&twins).await;
    load.more(20).await;

    // GIVEN equal databases, under load
    let (good, answer) = verify(&twins, &["--all"]).await;
    assert!(good && answer["equal"] == true, "seed {seed}: {answer}");
    loop {
        // WHEN some rows of the Agent DB are damaged
        let mut wanted = Wanted::default();
        corrupt(&twins, &mut random, &mut wanted).await;

        // THEN those are found and no others, also by a rehearsal of the repair, which changes nothing
        let (good, answer) = verify(&twins, &["t", "words", "plain"]).await;
        assert!(!good && answer["equal"] == false, "seed {seed}: {answer}");
        assert_found(&answer, &wanted, seed);
        let (good, rehearsed) = verify(&twins, &["--all", "--repair", "--dry-run"]).await;
        assert!(!good, "seed {seed}: {rehearsed}");
        assert_found(&rehearsed, &wanted, seed);

        // AND once they are repaired, both are equal again
        let (good, repaired) = verify(&twins, &["--all", "--repair"]).await;
        assert!(good, "seed {seed}: {repaired}");
        assert_found(&repaired, &wanted, seed);
        let (good, answer) = verify(&twins, &["--all"]).await;
        assert!(good && answer["equal"] == true, "seed {seed}: {answer}");
        if Instant::now() >= until {
            break;
        }
    }
    load.end().await;
    twins.assert_balanced().await;
    let own = twins.agent.value("SELECT count(*) FROM t WHERE note = 'other'").await;
    assert_ne!(own, "0", "the Agent DB's own column is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_rows_and_held_tables_are_told_apart_from_differences() {
    // GIVEN a row that the Agent DB refuses, a table that it can't take, and a table that is fine
    let twins =
        Twins::new("CREATE TABLE fine (id int PRIMARY KEY, v text); CREATE TABLE held (id int PRIMARY KEY)").await;
    twins
        .on_site("CREATE TABLE parked (id int PRIMARY KEY, n bigint); ALTER TABLE held ADD v text")
        .await;
    twins.on_agent("CREATE TABLE parked (id int PRIMARY KEY, n int)").await;
    twins
        .on_site("INSERT INTO parked VALUES (1, 1), (2, 3000000000), (3, 3); INSERT INTO fine VALUES (1, 'a')")
        .await;
    let _daemon = twins.start().await;
    twins.until_parked(1).await;
    twins.until_table("held", "held", 0).await;

    // WHEN all is verified, by the daemon
    let (good, answer) = verify(&twins, &["--all"]).await;

    // THEN each is what it is, and equal is only what is proved
    assert!(!good && answer["equal"] == false, "{answer}");
    for table in answer["tables"].as_array().unwrap() {
        let none = table["missing_rows"] == 0 && table["extra_rows"] == 0 && table["different_rows"] == 0;
        assert!(none, "{table}");
        match table["table"].as_str().unwrap() {
            "public.fine" => assert!(table["equal"] == true && table["rows"] == 1, "{table}"),
            "public.parked" => assert!(table["equal"] == false && table["parked"] == 1, "{table}"),
            "public.held" => assert!(table["held"].as_str().unwrap().contains('v'), "{table}"),
            other => panic!("{other}"),
        }
    }
    assert!(verify(&twins, &["fine"]).await.0);
    let output = twins.fails(&["verify", "nosuchtable"]).await;
    assert!(output.contains("nosuchtable"), "{output}");
    // In words, and in the daemon's row with who asked.
    let output = twins.fails(&["verify", "--all"]).await;
    assert!(output.contains("public.fine: 1 row(s) compared: equal"), "{output}");
    assert!(output.contains("public.held: not verified: "), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_runs_by_itself_if_no_daemon_runs_and_is_given_up_when_it_is_cancelled() {
    let twins = Twins::with_notes(2000).await.with("sync.copy_chunk_rows = 100");
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    daemon.stop().await;
    twins.on_agent("UPDATE notes SET body = 'wrong' WHERE id = 77").await;
    twins.on_site("UPDATE notes SET body = 'new' WHERE id > 1000").await;

    let (good, answer) = verify(&twins, &["notes"]).await;
    assert!(!good, "{answer}");
    assert_eq!(
        of_table(&answer, "public.notes")["different"],
        json!([{ "key": ["77"], "columns": ["body"] }])
    );

    // WHEN one that a daemon serves slowly is cancelled
    let _daemon = twins.start().await;
    let mut slow = twins.spawn(&["verify", "notes", "--rate", "50"]);
    let running = "SELECT count(*) FROM twinlog.commands WHERE kind = 'verify' AND state = 'running'";
    twins.until_agent("it runs", running, "1").await;
    slow.terminate();
    assert!(!slow.wait(SOON).await.success());

    // THEN the daemon is free for the next
    twins.until_agent("it is given up", running, "0").await;
    let (good, answer) = verify(&twins, &["notes", "--repair"]).await;
    assert!(good, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_a_repair_loses_nothing_and_the_report_is_whole() {
    let twins = Twins::new(NOTES).await.with("sync.copy_chunk_rows = 100");
    twins
        .on_site("INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, 1000) i")
        .await;
    for point in [REPAIR_AFTER_READ, REPAIR_AFTER_WRITE] {
        let daemon = twins.start().await;
        twins.until_equal(&["notes"]).await;
        daemon.stop().await;
        twins
            .on_agent("DELETE FROM notes WHERE id % 100 = 3; UPDATE notes SET n = NULL WHERE id % 100 = 4; INSERT INTO notes VALUES (5000)")
            .await;
        let mut dying = twins.launch_with(&format!("{point}=return(abort)"));
        dying.until_flowing().await;
        let daemon =
            "SELECT count(*) FROM twinlog.daemon WHERE state = 'streaming' AND reported_at > now() - interval '1.5 s'";
        twins.until_agent("the daemon reports", daemon, "1").await;

        // WHEN the daemon dies at the edge of a repair, while rows change
        let mut repair = twins.spawn(&["verify", "notes", "--repair", "--json"]);
        dying.wait(2 * SOON).await;
        twins
            .on_site("UPDATE notes SET body = 'newer' WHERE id = 303; DELETE FROM notes WHERE id = 904")
            .await;
        let next = twins.start().await;

        // THEN the next one goes on with it, newer changes win, and the report has each row once
        let status = repair.wait(2 * SOON).await;
        assert!(status.success(), "{point}: {}", repair.output());
        let answer = answer(&repair.output());
        let table = &answer["tables"][0];
        assert!(
            table["missing_rows"] == 10 && table["extra_rows"] == 1,
            "{point}: {answer}"
        );
        assert!(
            table["different_rows"] == 10 || table["different_rows"] == 9,
            "{point}: {answer}"
        );
        twins.until_equal(&["notes"]).await;
        twins.assert_balanced().await;
        let by = "SELECT arguments->>'by' IS NOT NULL AND finished_at IS NOT NULL FROM twinlog.commands ORDER BY id DESC LIMIT 1";
        assert_eq!(twins.agent.value(by).await, "true", "who, and when");
        next.stop().await;
        twins
            .on_site("INSERT INTO notes VALUES (904) ON CONFLICT DO NOTHING")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_its_schedule_the_daemon_finds_what_differs_and_says_so_until_it_is_repaired() {
    // GIVEN a daemon that verifies all the time
    let twins = Twins::with_notes(100).await.with("sync.verify_every = \"1s\"");
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    let until_shown = async |metrics: &[&str]| {
        let page = || async { daemon.admin("/metrics").await.unwrap_or_default().1 };
        let are_shown = |page: &String| {
            metrics
                .iter()
                .all(|metric| page.lines().any(|line| line.starts_with(metric)))
        };
        eventually_is(&format!("{metrics:?} is shown"), 2 * SOON, page, are_shown).await;
    };
    until_shown(&[
        "twinlog_verified_through_timestamp_seconds{table=\"public.notes\"} 1",
        "twinlog_verified_differences{table=\"public.notes\"} 0",
        "twinlog_persistence_gap{kind=\"rows_missing\"} 0",
    ])
    .await;
    let status = twins.until_status_is_good(&[]).await;
    assert!(status.contains(" ago"), "{status}");

    // WHEN somebody changes the Agent DB
    twins
        .on_agent("DELETE FROM notes WHERE id = 1; UPDATE notes SET n = 0 WHERE id = 2; INSERT INTO notes VALUES (999)")
        .await;

    // THEN it is found, and stays so
    until_shown(&[
        "twinlog_verified_differences{table=\"public.notes\"} 3",
        "twinlog_persistence_gap{kind=\"rows_missing\"} 2",
    ])
    .await;
    let output = twins.fails(&["status"]).await;
    assert!(
        output.contains("3 row(s) differ in the Agent DB: twinlog verify public.notes"),
        "{output}"
    );

    // UNTIL a person has it repaired, who need not wait for the schedule
    assert!(verify(&twins, &["notes", "--repair"]).await.0);
    until_shown(&[
        "twinlog_verified_differences{table=\"public.notes\"} 0",
        "twinlog_persistence_gap{kind=\"rows_missing\"} 0",
    ])
    .await;
    twins.until_status_is_good(&[]).await;
}
