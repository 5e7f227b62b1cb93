//! The stream of a real server: the messages that arrive, and the positions that are reported back.

use std::time::{Duration, Instant};

use twinlog::change::ColumnValue;
use twinlog::dev::postgres::Settings;
use twinlog::lsn::Lsn;
use twinlog::pgoutput::{Message, OldTuple};

use super::real::{FENCE, confirmed, connect, is_active, is_fence, messages_until, slot, start, streaming};
use crate::harness::{self, SOON, eventually, eventually_equal};

#[tokio::test]
async fn a_long_transaction_is_not_cut_by_the_databases_time_limits() {
    let db = harness::databases().await;
    let name = &db.site.name;
    let limited = db
        .site
        .batch_execute(&format!("ALTER DATABASE {name} SET transaction_timeout = '100ms'"))
        .await;
    if db.site.cluster.major() < 17 {
        limited.expect_err("17 brought the limit");
        return;
    }
    limited.unwrap();
    db.on_site("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let (mut stream, _feedback) = streaming(&db).await;
    db.on_site("INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 200000) i")
        .await;
    db.on_site(FENCE).await;
    let messages = messages_until(&mut stream, is_fence).await;
    let inserts = messages.iter().filter(|message| matches!(message, Message::Insert(_)));
    assert_eq!(inserts.count(), 200_000);
}

#[tokio::test]
async fn a_slot_is_made_to_survive_a_failover_where_the_server_can_do_that() {
    let db = harness::databases().await;
    connect(&db.site)
        .await
        .create_slot(&slot(&db.site), SOON)
        .await
        .unwrap();
    let failover = db
        .site
        .text(&format!(
            "SELECT to_jsonb(s) ->> 'failover' FROM pg_replication_slots s WHERE slot_name = '{}'",
            db.site.name
        ))
        .await;
    // The option exists since Postgres 17.
    let expected = (db.site.cluster.major() >= 17).then_some("true");
    assert_eq!(failover.as_deref(), expected);
}

#[tokio::test]
async fn every_kind_of_message_arrives_as_it_was_written() {
    // GIVEN a stream of everything that can happen
    let db = harness::databases().await;
    db.on_site(
        r#"CREATE SCHEMA "Odd ""s"; CREATE TYPE mood AS ENUM ('fine');
               CREATE TABLE "Odd ""s"."T able" (id int PRIMARY KEY, "Col" text, m mood);
               CREATE TABLE full_identity (a int, big text);
               ALTER TABLE full_identity REPLICA IDENTITY FULL;
               ALTER TABLE full_identity ALTER big SET STORAGE EXTERNAL;"#,
    )
    .await;
    let (mut stream, _feedback) = streaming(&db).await;
    for statement in [
        r#"INSERT INTO "Odd ""s"."T able" VALUES (-1, 'é', NULL), (2, '', 'fine')"#,
        r#"UPDATE "Odd ""s"."T able" SET "Col" = 'x' WHERE id = 2"#,
        r#"UPDATE "Odd ""s"."T able" SET id = 3 WHERE id = 2"#,
        r#"DELETE FROM "Odd ""s"."T able" WHERE id = 3"#,
        "INSERT INTO full_identity VALUES (1, repeat('x', 100000))",
        "UPDATE full_identity SET a = 2",
        "DELETE FROM full_identity",
        r#"TRUNCATE full_identity, "Odd ""s"."T able" RESTART IDENTITY CASCADE"#,
        "SELECT pg_logical_emit_message(true, 'inside', 'content')",
        FENCE,
    ] {
        db.on_site(statement).await;
    }
    let messages = messages_until(&mut stream, is_fence).await;

    // THEN each message is there. A table or type may be described again at any time (an autovacuum is enough), and is at a truncate.
    let mut described = std::collections::HashSet::new();
    let kinds: String = messages
        .iter()
        .filter(|message| match message {
            Message::Relation(relation) => described.insert(('R', relation.id.0)),
            Message::Type(described_type) => described.insert(('Y', described_type.oid)),
            _ => true,
        })
        .map(|message| match message {
            Message::Begin(_) => 'B',
            Message::Commit(commit) => {
                assert!(commit.end_lsn > commit.commit_lsn);
                'C'
            }
            Message::Origin(_) => 'O',
            Message::Relation(_) => 'R',
            Message::Type(_) => 'Y',
            Message::Insert(_) => 'I',
            Message::Update(_) => 'U',
            Message::Delete(_) => 'D',
            Message::Truncate(_) => 'T',
            Message::Logical(_) => 'M',
        })
        .collect();
    assert_eq!(kinds, "BYRIICBUCBUCBDCBRICBUCBDCBTCBMCM");

    // The new row has its values.
    let text = |value: &ColumnValue| match value {
        ColumnValue::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        other => format!("{other:?}"),
    };
    let inserted: Vec<Vec<String>> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Insert(insert) => Some(insert.row.0.iter().map(text).collect()),
            _ => None,
        })
        .collect();
    assert_eq!(inserted[0], ["-1", "é", "Null"]);
    assert_eq!(inserted[1], ["2", "", "fine"]);
    assert_eq!(inserted[2][1].len(), 100_000);

    // The old row has the values that its replica identity sends.
    let old_tuples: Vec<&OldTuple> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Update(update) => Some(&update.old),
            _ => None,
        })
        .collect();
    assert!(matches!(
        old_tuples[..],
        [OldTuple::Absent, OldTuple::Key(_), OldTuple::Full(_)]
    ));
    stream.close().await.unwrap();
}

#[tokio::test]
async fn values_are_printed_under_our_settings_whatever_the_database_says() {
    let db = harness::databases().await;
    let name = &db.site.name;
    db.on_site(&format!(
        "ALTER DATABASE {name} SET DateStyle = 'German, DMY';
             ALTER DATABASE {name} SET IntervalStyle = 'iso_8601';
             ALTER DATABASE {name} SET TimeZone = 'Asia/Kolkata';
             ALTER DATABASE {name} SET extra_float_digits = -15;
             ALTER DATABASE {name} SET bytea_output = 'escape';
             ALTER DATABASE {name} SET statement_timeout = 1;
             CREATE TABLE v (id int PRIMARY KEY, d date, i interval, t timestamptz, f float8, b bytea, r regclass)"
    ))
    .await;

    let (mut stream, _feedback) = streaming(&db).await;
    db.on_site("INSERT INTO v VALUES (1, '2026-02-01', '1 day 2 hours', '2026-02-01 10:00+00', 0.1, '\\x00ff', 'v')")
        .await;
    db.on_site(FENCE).await;
    let messages = messages_until(&mut stream, is_fence).await;

    let row = messages.iter().find_map(|message| match message {
        Message::Insert(insert) => Some(&insert.row),
        _ => None,
    });
    let texts: Vec<_> = row
        .unwrap()
        .0
        .iter()
        .map(|value| match value {
            ColumnValue::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        texts,
        [
            "1",
            "2026-02-01",
            "1 day 02:00:00",
            "2026-02-01 10:00:00+00",
            "0.1",
            "\\x00ff",
            "public.v"
        ]
    );
}

#[tokio::test]
async fn the_slot_moves_to_what_is_durable_and_not_beyond() {
    let db = harness::databases().await;
    db.on_site("CREATE TABLE t (id int PRIMARY KEY)").await;
    let (mut stream, feedback) = streaming(&db).await;
    let before = confirmed(&db.site).await;
    db.on_site("INSERT INTO t VALUES (1)").await;
    db.on_site("INSERT INTO t VALUES (2)").await;
    db.on_site(FENCE).await;
    let ends: Vec<Lsn> = messages_until(&mut stream, is_fence)
        .await
        .into_iter()
        .filter_map(|message| match message {
            Message::Commit(commit) => Some(commit.end_lsn),
            _ => None,
        })
        .collect();
    // Everything is received, nothing is durable.
    assert_eq!(confirmed(&db.site).await, before);
    feedback.durable(ends[0]);
    eventually_equal("the slot follows", SOON, ends[0], || confirmed(&db.site)).await;
    // Closing reports the last position, and the slot is free when it returns.
    feedback.durable(ends[1]);
    stream.close().await.unwrap();
    assert!(!is_active(&db.site).await);
    assert_eq!(confirmed(&db.site).await, ends[1]);

    // A new stream starts after the confirmed position: confirmed transactions are not sent again.
    db.on_site("INSERT INTO t VALUES (3)").await;
    let (mut stream, _feedback) = start(&db.site).await;
    let messages = messages_until(&mut stream, |message| matches!(message, Message::Commit(_))).await;
    let inserts = messages.iter().filter(|message| matches!(message, Message::Insert(_)));
    assert_eq!(inserts.count(), 1);
}

#[tokio::test]
async fn a_dropped_stream_frees_the_slot() {
    let db = harness::databases().await;
    let (stream, feedback) = streaming(&db).await;
    assert!(is_active(&db.site).await);
    drop(stream);
    eventually_equal("the slot is free", SOON, false, || is_active(&db.site)).await;
    // The feedback handle may outlive the stream.
    feedback.durable(Lsn(1));
}

#[tokio::test]
async fn a_consumer_that_takes_nothing_does_not_lose_the_connection() {
    let db = harness::private_databases(
        Settings::default().parameter("wal_sender_timeout", "1s"),
        Settings::default(),
    )
    .await;
    db.on_site("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let (mut stream, _feedback) = streaming(&db).await;
    let pid = db.site.text("SELECT active_pid FROM pg_replication_slots").await;
    // Several times as much as the pump and the sockets can buffer.
    db.on_site("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 60000) i")
        .await;
    let replies = "SELECT reply_time FROM pg_stat_replication";
    let (began, mut seen) = (Instant::now(), 0);
    let mut last = db.site.text(replies).await;
    while began.elapsed() < Duration::from_secs(4) {
        let before = last.clone();
        last = eventually("a further report", SOON, || async {
            let now = db.site.text(replies).await;
            if now == before { Err(now) } else { Ok(now) }
        })
        .await;
        seen += 1;
    }
    assert!(seen >= 5, "{seen} reports in {:?}", began.elapsed());
    // Four times the limit later it is the same connection, and it has everything.
    assert_eq!(db.site.text("SELECT active_pid FROM pg_replication_slots").await, pid);
    let messages = messages_until(&mut stream, |message| matches!(message, Message::Commit(_))).await;
    let inserts = messages.iter().filter(|message| matches!(message, Message::Insert(_)));
    assert_eq!(inserts.count(), 60_000);
}
