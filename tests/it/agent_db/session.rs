//! The session: one writer, whole transactions, and a checkpoint that is committed together with its rows.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use twinlog::agent_db::{
    AgentError, Applier, CommandError, CommandKind, CommandState, Control, CopyPhase, Item, PassedOver, Resync,
    ResyncArguments, ResyncedState, ResyncedTable, Segment, TableChange, TableRecord, TableState,
};
use twinlog::config::{DatabaseUrl, SslMode};
use twinlog::dev::postgres::{Cluster, Settings, Shutdown};
use twinlog::lsn::Lsn;
use twinlog::postgres::{SessionError, Side, connect};
use twinlog::retry::Disposition;

use super::fixture::{Fixture, checkpoint, describe, insert, key, lines, settings};
use crate::harness::{Direction, Proxy, SOON, eventually, serve_tls};

/// An applier, as soon as the lock of the one before is free.
pub(super) async fn connect_soon(url: &DatabaseUrl, slot: &str) -> Applier {
    eventually("the lock is free", SOON, || Applier::connect(url, slot, settings())).await
}

#[tokio::test]
async fn a_second_applier_on_the_slot_is_told_who_is_there() {
    let mut fixture = Fixture::new("").await;
    let url = fixture.db.agent.database_url();
    let error = Applier::connect(&url, "slot", settings()).await.unwrap_err();
    let AgentError::Busy {
        holder: Some(holder), ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(holder.application, "twinlog test");
    assert_eq!(error.disposition(), Disposition::Transient);
    assert_eq!(
        fixture
            .lines("SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()")
            .await,
        [holder.pid.to_string()]
    );
    // An applier of another slot may connect.
    Applier::connect(&url, "another", settings()).await.unwrap();
    fixture.disconnect();
    connect_soon(&url, "slot").await;
}

#[tokio::test]
async fn a_session_that_has_lost_its_connection_cannot_commit() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .with_table("t")
        .await;
    fixture.apply(vec![insert(&t, &["1"])]).await;
    fixture.try_apply(vec![insert(&t, &["2"])]).await.unwrap();
    fixture.on_agent("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'twinlog test' AND datname = current_database()").await;
    let mut successor = connect_soon(&fixture.db.agent.database_url(), "slot").await;
    let error = fixture.try_commit(checkpoint(100)).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Transient, "{error}");
    let stored = successor.durable_checkpoint().await.unwrap().unwrap();
    assert_eq!(stored.checkpoint, checkpoint(3));
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["1"]);
}

#[tokio::test]
async fn a_daemon_that_vanishes_in_the_middle_of_a_statement_frees_the_lock() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .with_table("t")
        .await;
    fixture.on_agent("BEGIN; LOCK TABLE t").await;
    let stuck = tokio::time::timeout(Duration::from_millis(200), fixture.try_apply(vec![insert(&t, &["1"])])).await;
    assert!(stuck.is_err());
    fixture.disconnect();
    // The table is still locked: nothing but the check of the connection can end the statement this soon.
    connect_soon(&fixture.db.agent.database_url(), "slot").await;
}

#[tokio::test]
async fn a_huge_transaction_goes_through_many_segments_and_is_seen_at_once_or_not_at_all() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, n int CHECK (n < 100))")
        .await
        .with_table("t")
        .await;
    for round in 0..2 {
        for part in 0..5 {
            let changes = (0..200)
                .map(|row| {
                    let n = if row == 7 { "100" } else { "1" };
                    insert(&t, &[&(part * 200 + row).to_string(), n])
                })
                .collect();
            fixture.try_apply(changes).await.unwrap();
        }
        assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["0"]);
        if round == 0 {
            fixture.rollback().await.unwrap();
        }
    }
    let committed = fixture.try_commit(checkpoint(1000)).await.unwrap();
    assert!(committed.written);
    let total = committed.applied.total();
    assert_eq!((total.received, total.applied, total.parked), (1000, 995, 5));
    assert_eq!(
        fixture
            .lines("SELECT (SELECT count(*) FROM t) || ' ' || (SELECT count(*) FROM twinlog.failed_rows) || ' ' || received FROM twinlog.accounting")
            .await,
        ["995 5 1000"]
    );
}

#[tokio::test]
async fn the_checkpoint_is_the_rows_own_and_only_moves_forward() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .with_table("t")
        .await;
    assert_eq!(fixture.applier().durable_checkpoint().await.unwrap(), None);
    fixture.applier().initialise_checkpoint(&checkpoint(10)).await.unwrap();
    let stored = fixture.applier().durable_checkpoint().await.unwrap().unwrap();
    assert_eq!((&stored.checkpoint, &stored.gap), (&checkpoint(10), &None));

    // The checkpoint moves neither back nor to another source.
    fixture.try_apply(vec![insert(&t, &["1"])]).await.unwrap();
    let error = fixture.try_commit(checkpoint(9)).await.unwrap_err();
    assert!(matches!(error, AgentError::Backwards { .. }));
    fixture.reconnect().await;
    let stored = fixture.applier().durable_checkpoint().await.unwrap().unwrap();
    assert_eq!(stored.checkpoint, checkpoint(10));
    let mut elsewhere = checkpoint(12);
    elsewhere.identity.system_identifier = "7300000000000000002".into();
    fixture.try_apply(vec![insert(&t, &["1"])]).await.unwrap();
    let error = fixture.try_commit(elsewhere).await.unwrap_err();
    assert!(matches!(error, AgentError::AnotherSource));
    fixture.reconnect().await;
    assert!(fixture.lines("SELECT id FROM t").await.is_empty());

    // It moves forward together with the rows.
    fixture.try_apply(vec![insert(&t, &["1"])]).await.unwrap();
    let mut at = checkpoint(11);
    at.source_commit_at = Some(time::macros::datetime!(2026-11-21 06:00:00.123456 UTC));
    let committed = fixture.try_commit(at.clone()).await.unwrap();
    assert!(committed.written && committed.end_lsn == Lsn(11));

    // Idle: nothing to write twice, but a new position is written.
    assert!(!fixture.try_commit(at.clone()).await.unwrap().written);
    at.end_lsn = Lsn(0x16_B374_D848);
    assert!(fixture.try_commit(at.clone()).await.unwrap().written);
    assert_eq!(
        fixture
            .applier()
            .durable_checkpoint()
            .await
            .unwrap()
            .unwrap()
            .checkpoint,
        at
    );

    // An idle stream moves on without a commit: when the last one was stays known.
    let mut idle = at.clone();
    (idle.end_lsn, idle.source_commit_at) = (Lsn(0x16_B374_D849), None);
    assert!(fixture.try_commit(idle).await.unwrap().written);
    let stored = fixture
        .applier()
        .durable_checkpoint()
        .await
        .unwrap()
        .unwrap()
        .checkpoint;
    assert_eq!(
        (stored.end_lsn, stored.source_commit_at),
        (Lsn(0x16_B374_D849), at.source_commit_at)
    );
    at.end_lsn = Lsn(0x16_B374_D900);
    fixture.try_commit(at).await.unwrap();
    assert_eq!(
        fixture.lines("SELECT end_lsn FROM twinlog.checkpoint").await,
        ["16/B374D900"]
    );
}

#[tokio::test]
async fn synchronous_commit_is_raised_where_the_database_has_it_off() {
    let fixture = Fixture::new("").await;
    let name = &fixture.db.agent.name;
    fixture
        .on_agent(&format!(
            "ALTER DATABASE {name} SET synchronous_commit = off; ALTER DATABASE {name} SET DateStyle = 'German';
             ALTER DATABASE {name} SET search_path = public; ALTER DATABASE {name} SET statement_timeout = '10s'"
        ))
        .await;
    let client = connect(Side::Agent, &fixture.db.agent.database_url(), "settings")
        .await
        .unwrap();
    for (setting, expected) in [
        ("synchronous_commit", "on"),
        ("DateStyle", "ISO, YMD"),
        ("search_path", "pg_catalog"),
        ("statement_timeout", "0"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("row_security", "off"),
        ("tcp_keepalives_idle", "10"),
        ("application_name", "settings"),
    ] {
        assert_eq!(
            lines(&client, &format!("SELECT current_setting('{setting}')")).await,
            [expected],
            "{setting}"
        );
    }
}

#[tokio::test]
async fn a_call_that_was_dropped_half_way_must_be_rolled_back() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .with_table("t")
        .await;
    fixture.on_agent("BEGIN; LOCK TABLE t").await;
    let stuck = tokio::time::timeout(Duration::from_millis(200), fixture.try_apply(vec![insert(&t, &["1"])])).await;
    assert!(stuck.is_err());
    fixture.on_agent("ROLLBACK").await;
    assert!(matches!(
        fixture.try_apply(vec![insert(&t, &["1"])]).await,
        Err(AgentError::Aborted)
    ));
    fixture.rollback().await.unwrap();
    fixture.apply(vec![insert(&t, &["2"])]).await;
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["2"]);
    // It is never committed.
    fixture.on_agent("BEGIN; LOCK TABLE t").await;
    let stuck = tokio::time::timeout(Duration::from_millis(200), fixture.try_apply(vec![insert(&t, &["3"])])).await;
    assert!(stuck.is_err());
    fixture.on_agent("ROLLBACK").await;
    assert!(matches!(
        fixture.try_commit(checkpoint(50)).await,
        Err(AgentError::Aborted)
    ));
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["2"]);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_its_checkpoint_tells() {
    let fixture = Fixture::new("CREATE TABLE t (id int PRIMARY KEY)").await;
    let proxy = Proxy::start(fixture.db.agent.cluster.port()).await;
    let through: DatabaseUrl = fixture.db.agent.url_through(proxy.port()).parse().unwrap();
    let mut applier = Applier::connect(&through, "other", settings()).await.unwrap();
    let t = applier.resolve(&describe(&fixture.db.agent, "t").await).await.unwrap();
    let mut transaction = applier.begin();
    transaction
        .apply(Segment {
            items: vec![Item::Change(insert(&t, &["1"]))],
            lsn: Lsn(1),
        })
        .await
        .unwrap();
    proxy.hold(Direction::ToClient);
    let mut at = checkpoint(7);
    at.identity.slot = "other".into();
    let unanswered = tokio::time::timeout(Duration::from_millis(300), transaction.commit(at.clone())).await;
    // The transaction and its session are gone with the commit: nothing can be done but to look.
    assert!(unanswered.is_err());
    drop(proxy);
    let mut applier = connect_soon(&fixture.db.agent.database_url(), "other").await;
    assert_eq!(applier.durable_checkpoint().await.unwrap().unwrap().checkpoint, at);
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["1"]);
}

#[tokio::test]
async fn a_copys_progress_is_committed_with_its_rows() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .with_table("t")
        .await;
    let control = Control::connect(&fixture.db.agent.database_url(), "slot", "control")
        .await
        .unwrap();

    // GIVEN a copy under way
    let mut progress = TableRecord::new(t.table.clone());
    fixture
        .applier()
        .write_table(&TableChange::Saved(progress.clone()))
        .await
        .unwrap();
    progress.state = TableState::Copying;
    progress.phase = Some(CopyPhase::Rows);
    progress.last_key = Some(key(&["a\"b"]));
    progress.rows_copied = 3;
    progress.copied_at_lsn = Some(Lsn(77));
    progress.started_at = Some(time::macros::datetime!(2026-11-21 06:00 UTC));

    // WHEN its rows and its progress are applied, THEN both are seen with the commit
    fixture
        .try_apply_items(vec![
            Item::Change(super::fixture::chunk(insert(&t, &["1"]))),
            Item::Table(TableChange::Saved(progress.clone())),
            Item::PassedOver {
                relation: std::sync::Arc::clone(&t),
                count: 4,
                why: PassedOver::NotSelected,
            },
        ])
        .await
        .unwrap();
    assert_eq!(control.tables().await.unwrap(), [TableRecord::new(t.table.clone())]);
    fixture.commit().await;
    assert_eq!(control.tables().await.unwrap(), [progress]);
    assert_eq!(
        fixture
            .lines("SELECT received || ' ' || filtered || ' ' || copied FROM twinlog.accounting")
            .await,
        ["4 4 1"]
    );
}

#[tokio::test]
async fn a_command_wakes_the_daemon_and_tells_how_it_went() {
    let fixture = Fixture::new("").await;
    let url = fixture.db.agent.database_url();
    let daemon = Control::connect(&url, "slot", "daemon").await.unwrap();
    let person = Control::connect(&url, "slot", "person").await.unwrap();
    let mut resync = Resync {
        arguments: ResyncArguments {
            tables: vec!["public.t".to_owned()],
            ..ResyncArguments::default()
        },
        ..Resync::default()
    };
    let id = person.request(&CommandKind::Resync(resync.clone())).await.unwrap();
    tokio::time::timeout(SOON, daemon.notified()).await.unwrap();
    let open = daemon.open_commands().await.unwrap();
    assert_eq!((open.len(), open[0].id), (1, id));
    assert_eq!(open[0].kind, Ok(CommandKind::Resync(resync.clone())));
    resync.progress.tables.push(ResyncedTable {
        changed: None,
        copied_before: None,
        table: "public.t".to_owned(),
        state: ResyncedState::Resyncing,
        rows: 1,
        estimated: Some(5),
    });
    let kind = CommandKind::Resync(resync);
    daemon.command_progress(id, &kind).await.unwrap();
    daemon.finish_command(id, Err("no such table")).await.unwrap();
    assert!(daemon.open_commands().await.unwrap().is_empty());
    let command = person.command(id).await.unwrap().unwrap();
    assert_eq!((command.state, command.kind), (CommandState::Failed, Ok(kind)));
    assert_eq!(command.error.as_deref(), Some("no such table"));
    assert!(person.command(id + 1).await.unwrap().is_none());
}

#[tokio::test]
async fn a_command_of_a_newer_version_is_kept_and_refused() {
    let fixture = Fixture::new("").await;
    let url = fixture.db.agent.database_url();
    let daemon = Control::connect(&url, "slot", "daemon").await.unwrap();
    fixture
        .agent()
        .batch_execute("INSERT INTO twinlog.commands (slot, kind) VALUES ('slot', 'of_a_newer_version')")
        .await
        .unwrap();
    let open = daemon.open_commands().await.unwrap();
    assert!(
        matches!(&open[0].kind, Err(CommandError::Unknown { kind }) if kind == "of_a_newer_version"),
        "{open:?}"
    );
}

#[tokio::test]
async fn a_database_without_the_schema_says_what_to_run() {
    let db = crate::harness::databases().await;
    let error = Applier::connect(&db.agent.database_url(), "slot", settings())
        .await
        .unwrap_err();
    assert_eq!(error.disposition(), Disposition::Systemic);
    assert!(
        error.hint().is_some_and(|hint| hint.contains("twinlog sync")),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_password_is_not_retried_for_ever_and_not_shown() {
    let db = crate::harness::databases().await;
    let mut url = db.agent.database_url();
    url.password = Some("hunter2".to_owned().into());
    let error = connect(Side::Agent, &url, "x").await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Systemic);
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn tls_works_and_its_errors_say_what_to_do() {
    let cluster = Cluster::start(Settings::default()).await.unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name = DistinguishedName::new();
    authority.distinguished_name.push(DnType::CommonName, "ours");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    cluster.write_file("root.crt", root.pem().as_bytes()).unwrap();
    serve_tls(&cluster, &certificate.pem(), &key).await;
    cluster.restart(Shutdown::Fast).await.unwrap();

    let mut url: DatabaseUrl = cluster.url("postgres").parse().unwrap();
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (mode, rooted, expected) in [
        (SslMode::Disable, false, "false"),
        (SslMode::Require, false, "true"),
        (SslMode::VerifyCa, true, "true"),
        (SslMode::VerifyFull, true, "true"),
    ] {
        url.sslmode = mode;
        url.sslrootcert = rooted.then(|| cluster.data().join("root.crt"));
        let client = connect(Side::Agent, &url, "tls").await.unwrap();
        assert_eq!(lines(&client, encrypted).await, [expected], "{mode:?}");
    }

    // An authority that signed nothing here.
    let stranger = CertificateParams::new(vec!["stranger".to_owned()])
        .unwrap()
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap();
    cluster.write_file("root.crt", stranger.pem().as_bytes()).unwrap();
    let error = connect(Side::Agent, &url, "tls").await.unwrap_err();
    assert!(
        error.hint().is_some_and(|hint| hint.contains("sslrootcert")),
        "{error:?}"
    );
    url.sslrootcert = Some("/absent.pem".into());
    let error = connect(Side::Agent, &url, "tls").await.unwrap_err();
    assert!(matches!(error, SessionError::Tls { .. }), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Systemic);
}

#[tokio::test]
async fn connecting_to_a_server_that_never_answers_times_out() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: DatabaseUrl = format!("postgres://me@127.0.0.1:{}/db", silent.local_addr().unwrap().port())
        .parse()
        .unwrap();
    tokio::time::pause();
    let error = connect(Side::Agent, &url, "x").await.unwrap_err();
    assert!(matches!(error, SessionError::ConnectTimeout { .. }), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Transient);
}

#[tokio::test]
async fn an_applier_connects_over_a_unix_socket() {
    let db = crate::harness::databases().await;
    let url: DatabaseUrl = db.agent.cluster.socket_url(&db.agent.name).parse().unwrap();
    let client = connect(Side::Agent, &url, "socket").await.unwrap();
    assert_eq!(
        lines(
            &client,
            "SELECT client_addr IS NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
        .await,
        ["true"]
    );
}
