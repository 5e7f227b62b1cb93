//! The stream of a real server: what arrives, what is reported back, how it ends.

use std::time::{Duration, Instant};

use twinlog::change::ColumnValue;
use twinlog::dev::postgres::{Cluster, Settings, Shutdown};
use twinlog::lsn::Lsn;
use twinlog::pgoutput::{self, Message, OldTuple};
use twinlog::retry::Disposition;
use twinlog::wire::{Feedback, Frame, FrameStream, ReplicationConnection, ServerFault, SlotName, WireError};

use crate::harness::{self, Database, Databases, Proxy, SOON, eventually, eventually_equal};

async fn connect(database: &Database) -> ReplicationConnection {
    ReplicationConnection::connect(&database.database_url(), "twinlog-test")
        .await
        .unwrap()
}

fn slot(database: &Database) -> SlotName {
    database.name.parse().unwrap()
}

/// A site whose publication `p` has all tables, and the stream from here on.
async fn streaming(db: &Databases) -> (FrameStream, Feedback) {
    db.site
        .batch_execute("CREATE PUBLICATION p FOR ALL TABLES")
        .await
        .unwrap();
    let mut connection = connect(&db.site).await;
    connection.create_slot(&slot(&db.site), SOON).await.unwrap();
    start(&db.site).await
}

async fn start(site: &Database) -> (FrameStream, Feedback) {
    let connection = connect(site).await;
    connection
        .start_replication(&slot(site), Lsn::INVALID, &["p".to_owned()])
        .await
        .unwrap()
}

/// Decodes messages until one is what is waited for (included).
async fn messages_until(stream: &mut FrameStream, done: impl Fn(&Message) -> bool) -> Vec<Message> {
    let mut messages = Vec::new();
    let reading = async {
        loop {
            for frame in stream.next().await.unwrap().unwrap() {
                if let Frame::XLogData { payload, .. } = frame {
                    messages.push(pgoutput::decode(payload).unwrap());
                }
            }
            if messages.iter().any(&done) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, reading)
        .await
        .expect("the last message arrives");
    messages
}

fn is_fence(message: &Message) -> bool {
    matches!(message, Message::Logical(message) if &*message.prefix == "fence")
}

const FENCE: &str = "SELECT pg_logical_emit_message(false, 'fence', '')";

async fn confirmed(site: &Database) -> Lsn {
    let query = format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
        site.name
    );
    site.text(&query).await.unwrap().parse().unwrap()
}

async fn is_active(site: &Database) -> bool {
    let query = format!(
        "SELECT active FROM pg_replication_slots WHERE slot_name = '{}'",
        site.name
    );
    site.text(&query).await.unwrap() == "true"
}

#[tokio::test]
async fn a_transaction_takes_as_long_as_it_takes_whatever_limit_the_database_has() {
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
    db.site
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await
        .unwrap();
    let (mut stream, _feedback) = streaming(&db).await;
    db.site
        .batch_execute("INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 200000) i")
        .await
        .unwrap();
    db.site.batch_execute(FENCE).await.unwrap();
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
    // 17 brought it.
    let expected = (db.site.cluster.major() >= 17).then_some("true");
    assert_eq!(failover.as_deref(), expected);
}

#[tokio::test]
async fn every_kind_of_message_arrives_as_it_was_written() {
    let db = harness::databases().await;
    db.site
        .batch_execute(
            r#"CREATE SCHEMA "Odd ""s"; CREATE TYPE mood AS ENUM ('fine');
               CREATE TABLE "Odd ""s"."T able" (id int PRIMARY KEY, "Col" text, m mood);
               CREATE TABLE full_identity (a int, big text);
               ALTER TABLE full_identity REPLICA IDENTITY FULL;
               ALTER TABLE full_identity ALTER big SET STORAGE EXTERNAL;"#,
        )
        .await
        .unwrap();
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
        db.site.batch_execute(statement).await.unwrap();
    }
    let messages = messages_until(&mut stream, is_fence).await;
    // A table or type may be described again at any time (an autovacuum is enough), and is at a truncate.
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
    db.site
        .batch_execute(&format!(
            "ALTER DATABASE {name} SET DateStyle = 'German, DMY';
             ALTER DATABASE {name} SET IntervalStyle = 'iso_8601';
             ALTER DATABASE {name} SET TimeZone = 'Asia/Kolkata';
             ALTER DATABASE {name} SET extra_float_digits = -15;
             ALTER DATABASE {name} SET bytea_output = 'escape';
             ALTER DATABASE {name} SET statement_timeout = 1;
             CREATE TABLE v (id int PRIMARY KEY, d date, i interval, t timestamptz, f float8, b bytea, r regclass)"
        ))
        .await
        .unwrap();
    let (mut stream, _feedback) = streaming(&db).await;
    db.site
        .batch_execute(
            "INSERT INTO v VALUES (1, '2026-02-01', '1 day 2 hours', '2026-02-01 10:00+00', 0.1, '\\x00ff', 'v')",
        )
        .await
        .unwrap();
    db.site.batch_execute(FENCE).await.unwrap();
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
    db.site
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .unwrap();
    let (mut stream, feedback) = streaming(&db).await;
    let before = confirmed(&db.site).await;
    db.site.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    db.site.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    db.site.batch_execute(FENCE).await.unwrap();
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
    // The last position is reported by the closing, and the slot is free when that returns.
    feedback.durable(ends[1]);
    stream.close().await.unwrap();
    assert!(!is_active(&db.site).await);
    assert_eq!(confirmed(&db.site).await, ends[1]);

    // A new stream goes on behind it: the confirmed transactions do not come again.
    db.site.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    let (mut stream, _feedback) = start(&db.site).await;
    let messages = messages_until(&mut stream, |message| matches!(message, Message::Commit(_))).await;
    let inserts = messages.iter().filter(|message| matches!(message, Message::Insert(_)));
    assert_eq!(inserts.count(), 1);
}

#[tokio::test]
async fn a_dropped_stream_leaves_the_slot() {
    let db = harness::databases().await;
    let (stream, feedback) = streaming(&db).await;
    assert!(is_active(&db.site).await);
    drop(stream);
    eventually_equal("the slot is free", SOON, false, || is_active(&db.site)).await;
    // The handle may outlive it.
    feedback.durable(Lsn(1));
}

#[tokio::test]
async fn a_consumer_that_takes_nothing_does_not_lose_the_connection() {
    let db = harness::private_databases(
        Settings::default().parameter("wal_sender_timeout", "1s"),
        Settings::default(),
    )
    .await;
    db.site
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await
        .unwrap();
    let (mut stream, _feedback) = streaming(&db).await;
    let pid = db.site.text("SELECT active_pid FROM pg_replication_slots").await;
    // Several times what the pump and the sockets hold.
    db.site
        .batch_execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 60000) i")
        .await
        .unwrap();
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

#[tokio::test]
async fn a_slot_that_is_missing_or_in_use_is_told() {
    let db = harness::databases().await;
    let publications = ["p".to_owned()];
    let missing = connect(&db.site)
        .await
        .start_replication(&slot(&db.site), Lsn::INVALID, &publications)
        .await
        .err()
        .unwrap();
    assert_eq!(missing.fault(), Some(ServerFault::SlotMissing), "{missing}");
    assert_eq!(missing.disposition(), Disposition::Systemic);

    let (stream, _feedback) = streaming(&db).await;
    let in_use = connect(&db.site)
        .await
        .start_replication(&slot(&db.site), Lsn::INVALID, &publications)
        .await
        .err()
        .unwrap();
    assert_eq!(in_use.fault(), Some(ServerFault::SlotActive), "{in_use}");
    assert_eq!(in_use.disposition(), Disposition::Transient);
    let mut connection = connect(&db.site).await;
    let in_use = connection.drop_slot(&slot(&db.site)).await.unwrap_err();
    assert_eq!(in_use.fault(), Some(ServerFault::SlotActive), "{in_use}");
    let exists = connection.create_slot(&slot(&db.site), SOON).await.unwrap_err();
    assert_eq!(exists.fault(), Some(ServerFault::SlotExists), "{exists}");

    stream.close().await.unwrap();
    connection.drop_slot(&slot(&db.site)).await.unwrap();
    let missing = connection.drop_slot(&slot(&db.site)).await.unwrap_err();
    assert_eq!(missing.fault(), Some(ServerFault::SlotMissing), "{missing}");
}

#[tokio::test]
async fn a_missing_publication_is_an_error_of_the_stream() {
    let db = harness::databases().await;
    // From 18 on it is only a warning, which must not be switched off.
    db.site
        .batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); ALTER DATABASE {} SET client_min_messages = 'error'",
            db.site.name
        ))
        .await
        .unwrap();
    let mut connection = connect(&db.site).await;
    connection.create_slot(&slot(&db.site), SOON).await.unwrap();
    let (mut stream, _feedback) = start(&db.site).await;
    db.site.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.fault(), Some(ServerFault::PublicationMissing), "{error}");
    assert!(error.hint().unwrap().contains("CREATE PUBLICATION"));
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_told() {
    let db = harness::private_databases(
        Settings::default()
            .parameter("max_slot_wal_keep_size", "1MB")
            .parameter("min_wal_size", "32MB")
            .parameter("max_wal_size", "32MB"),
        Settings::default(),
    )
    .await;
    db.site.batch_execute("CREATE TABLE t (v text)").await.unwrap();
    let (stream, _feedback) = streaming(&db).await;
    stream.close().await.unwrap();
    eventually("the slot is lost", SOON, || async {
        db.site
            .batch_execute("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
            .await
            .unwrap();
        db.site.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        db.site.batch_execute("CHECKPOINT").await.unwrap();
        let status = db.site.text("SELECT wal_status FROM pg_replication_slots").await;
        if status.as_deref() == Some("lost") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    let lost = connect(&db.site)
        .await
        .start_replication(&slot(&db.site), Lsn::INVALID, &["p".to_owned()])
        .await
        .err()
        .unwrap();
    assert_eq!(lost.fault(), Some(ServerFault::SlotInvalidated), "{lost:?}");
    assert_eq!(lost.disposition(), Disposition::Systemic);
}

#[tokio::test]
async fn a_server_that_cannot_decode_says_which_setting() {
    let cluster = Cluster::start(Settings::default().parameter("wal_level", "replica"))
        .await
        .unwrap();
    let url = cluster.url("postgres").parse().unwrap();
    let mut connection = ReplicationConnection::connect(&url, "twinlog-test").await.unwrap();
    let error = connection.create_slot(&"s".parse().unwrap(), SOON).await.unwrap_err();
    assert_eq!(error.fault(), Some(ServerFault::WalLevel), "{error:?}");
    assert!(error.hint().unwrap().contains("wal_level = 'logical'"));
}

#[tokio::test]
async fn an_open_transaction_holds_a_slot_up_no_longer_than_asked() {
    let db = harness::private_databases(Settings::default(), Settings::default()).await;
    let blocker = db.site.connect().await;
    blocker.batch_execute("BEGIN; SELECT txid_current()").await.unwrap();
    let mut connection = connect(&db.site).await;
    let error = connection
        .create_slot(&slot(&db.site), Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(error.fault(), Some(ServerFault::LockTimeout), "{error}");
    assert_eq!(error.disposition(), Disposition::Transient);
    assert_eq!(
        db.site.text("SELECT count(*) FROM pg_replication_slots").await.unwrap(),
        "0"
    );
    // The connection is as good as before.
    blocker.batch_execute("ROLLBACK").await.unwrap();
    let created = connection.create_slot(&slot(&db.site), SOON).await.unwrap();
    assert_eq!(created.consistent_point, confirmed(&db.site).await);
}

#[tokio::test]
async fn a_stream_that_is_cut_or_ended_is_a_transient_error() {
    let db = harness::private_databases(
        Settings::default().parameter("wal_sender_timeout", "2s"),
        Settings::default(),
    )
    .await;
    let (mut stream, _feedback) = streaming(&db).await;
    db.site
        .batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        .await
        .unwrap();
    let error = failure(&mut stream).await;
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    assert_eq!(error.disposition(), Disposition::Transient);

    for half_open in [false, true] {
        let proxy = Proxy::start(db.site.cluster.port()).await;
        let url = db.site.url_through(proxy.port()).parse().unwrap();
        let connection = ReplicationConnection::connect(&url, "twinlog-test").await.unwrap();
        eventually_equal("the slot is free", SOON, false, || is_active(&db.site)).await;
        let (mut stream, _feedback) = connection
            .start_replication(&slot(&db.site), Lsn::INVALID, &["p".to_owned()])
            .await
            .unwrap();
        if half_open {
            proxy.half_open();
        } else {
            proxy.cut();
        }
        let error = failure(&mut stream).await;
        match &error {
            WireError::Timeout { .. } => assert!(half_open, "{error}"),
            WireError::Io(_) | WireError::Closed => assert!(!half_open, "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(error.disposition(), Disposition::Transient);
    }

    eventually_equal("the slot is free", SOON, false, || is_active(&db.site)).await;
    let (mut stream, _feedback) = start(&db.site).await;
    db.site.cluster.stop(Shutdown::Immediate).await.unwrap();
    let error = failure(&mut stream).await;
    assert_eq!(error.disposition(), Disposition::Transient, "{error}");
}

async fn failure(stream: &mut FrameStream) -> WireError {
    let failing = async {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error,
                None => panic!("the stream ended without a word"),
            }
        }
    };
    tokio::time::timeout(SOON, failing).await.expect("the stream fails")
}
