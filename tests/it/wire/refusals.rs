//! What a real server refuses, and how its stream ends: each is a typed error with a remedy.

use std::time::Duration;

use twinlog::dev::postgres::{Cluster, Settings, Shutdown};
use twinlog::lsn::Lsn;
use twinlog::retry::Disposition;
use twinlog::wire::{FrameStream, ReplicationConnection, ServerFault, WireError};

use super::real::{confirmed, connect, is_active, slot, start, streaming};
use crate::harness::{self, Proxy, SOON, eventually, eventually_equal};

#[tokio::test]
async fn a_slot_that_is_missing_or_in_use_is_a_typed_error() {
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
    db.on_site(&format!(
        "CREATE TABLE t (id int PRIMARY KEY); ALTER DATABASE {} SET client_min_messages = 'error'",
        db.site.name
    ))
    .await;
    let mut connection = connect(&db.site).await;
    connection.create_slot(&slot(&db.site), SOON).await.unwrap();
    let (mut stream, _feedback) = start(&db.site).await;
    db.on_site("INSERT INTO t VALUES (1)").await;
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
async fn a_slot_whose_wal_is_gone_is_a_typed_error() {
    let db = harness::private_databases(
        Settings::default()
            .parameter("max_slot_wal_keep_size", "1MB")
            .parameter("min_wal_size", "32MB")
            .parameter("max_wal_size", "32MB"),
        Settings::default(),
    )
    .await;
    db.on_site("CREATE TABLE t (v text)").await;
    let (stream, _feedback) = streaming(&db).await;
    stream.close().await.unwrap();
    eventually("the slot is lost", SOON, || async {
        db.on_site("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
            .await;
        db.on_site("SELECT pg_switch_wal()").await;
        db.on_site("CHECKPOINT").await;
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
async fn an_open_transaction_delays_a_slots_creation_no_longer_than_the_limit() {
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
    // The connection is still usable.
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
    db.on_site("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        .await;
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
