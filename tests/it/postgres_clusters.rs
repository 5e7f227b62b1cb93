//! `dev::postgres`: temporary clusters start, survive each kind of stop, and leave nothing behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use twinlog::dev::postgres::{Cluster, Settings, Shutdown};

use crate::harness::{self, Direction, Proxy, SOON, eventually, eventually_equal};

async fn count(cluster: &Cluster) -> i64 {
    let client = cluster.client("postgres").await.unwrap();
    client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_cluster_survives_every_kind_of_stop_on_the_same_port() {
    let cluster = Cluster::start(Settings::default().parameter("max_slot_wal_keep_size", "64MB"))
        .await
        .unwrap();
    let port = cluster.port();
    let client = cluster.client("postgres").await.unwrap();
    client.batch_execute("CREATE TABLE t (x int)").await.unwrap();
    let keep: String = client
        .query_one("SHOW max_slot_wal_keep_size", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(keep, "64MB");

    for (rows, how) in [Shutdown::Fast, Shutdown::Immediate, Shutdown::Kill]
        .into_iter()
        .enumerate()
    {
        let client = cluster.client("postgres").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        let before = cluster.pid();
        cluster.restart(how).await.unwrap();
        assert_ne!(cluster.pid(), before);
        assert_eq!(
            (cluster.port(), count(&cluster).await),
            (port, rows as i64 + 1),
            "{how:?}"
        );
    }

    cluster.stop(Shutdown::Fast).await.unwrap();
    assert_eq!(cluster.pid(), None);
    assert!(cluster.client("postgres").await.is_err());
    cluster.start_again().await.unwrap();
    assert_eq!(count(&cluster).await, 3);

    let folder = cluster.data();
    drop(cluster);
    assert!(!folder.exists());
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn a_parameter_changes_while_the_server_runs_or_with_its_restart_or_is_refused() {
    let cluster = Cluster::start(Settings::default()).await.unwrap();
    let show = async |name: &str| -> String {
        let client = cluster.client("postgres").await.unwrap();
        client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
    };
    cluster.set("wal_sender_timeout", "2s").await.unwrap();
    assert_eq!(show("wal_sender_timeout").await, "2s");

    cluster.set("max_wal_senders", "7").await.unwrap();
    assert_eq!(show("max_wal_senders").await, "64");
    cluster.restart(Shutdown::Fast).await.unwrap();
    assert_eq!(show("max_wal_senders").await, "7");

    let error = cluster.set("wal_sender_timeout", "soon").await.unwrap_err();
    assert!(error.to_string().contains("wal_sender_timeout"), "{error}");
    cluster.restart(Shutdown::Fast).await.unwrap();
    assert_eq!(show("wal_sender_timeout").await, "2s");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let error = Cluster::start(Settings::default().parameter("wal_level", "sideways"))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("it exited") && text.contains("wal_level"), "{text}");
}

/// Makes the next test, started by itself in a process of its own, the one that is killed.
const VICTIM: &str = "TWINLOG_TEST_VICTIM";

#[tokio::test]
async fn a_killed_process_leaves_neither_server_nor_folder() {
    use std::io::{BufRead, BufReader};
    if std::env::var_os(VICTIM).is_some() {
        let cluster = Cluster::start(Settings::default()).await.unwrap();
        println!("\nfolder={}", cluster.data().display());
        println!("pid={}", cluster.pid().unwrap());
        return std::future::pending().await;
    }
    let name = "postgres_clusters::a_killed_process_leaves_neither_server_nor_folder";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", name])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (mut folder, mut pid) = (None, None);
    for line in stdout.lines() {
        let line = line.unwrap();
        if let Some(value) = line.strip_prefix("folder=") {
            folder = Some(value.to_owned());
        }
        if let Some(value) = line.strip_prefix("pid=") {
            pid = value.parse::<i32>().ok();
            break;
        }
    }
    let (folder, pid) = (folder.unwrap(), nix::unistd::Pid::from_raw(pid.unwrap()));
    assert!(Path::new(&folder).exists());

    child.kill().unwrap();
    child.wait().unwrap();

    eventually("the folder is gone", SOON, || async {
        if Path::new(&folder).parent().unwrap().exists() {
            Err(&folder)
        } else {
            Ok(())
        }
    })
    .await;
    eventually_equal("the server is gone", SOON, false, || async {
        // A zombie that its parent has not reaped has ended as well.
        nix::sys::signal::kill(pid, None).is_ok()
            && !std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    })
    .await;
}

#[tokio::test]
async fn every_test_gets_two_fresh_databases_and_leaves_no_slot() {
    let (name, cluster) = {
        let db = harness::databases().await;
        db.on_both("CREATE TABLE t (x int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
            .await;
        harness::assert_same_table(&db.site, &db.agent, "public.t").await;
        db.agent.batch_execute("UPDATE t SET x = 3 WHERE x = 2").await.unwrap();
        assert_eq!(
            harness::differing_tables(&db.site, &db.agent, &["public.t"]).await,
            ["public.t"]
        );
        db.site
            .batch_execute(&format!(
                "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                db.site.name
            ))
            .await
            .unwrap();
        (db.site.name.clone(), Arc::clone(&db.site.cluster))
    };
    let client = cluster.client("postgres").await.unwrap();
    harness::eventually_equal("nothing is left", SOON, 0, || async {
        let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1)
                  + (SELECT count(*) FROM pg_database WHERE datname = $1)";
        client.query_one(left, &[&name]).await.unwrap().get::<_, i64>(0)
    })
    .await;
}

#[tokio::test]
async fn the_proxy_holds_delays_and_cuts() {
    let db = harness::databases().await;
    let proxy = Proxy::start(db.site.cluster.port()).await;
    let connect = || async {
        let (client, connection) =
            tokio_postgres::connect(&db.site.url_through(proxy.port()), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let client = connect().await.unwrap();
    assert!(client.simple_query("SELECT 1").await.is_ok());
    assert!(proxy.passed(Direction::ToServer) > 0);

    proxy.hold(Direction::ToClient);
    let mut question = Box::pin(client.simple_query("SELECT 1"));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), &mut question)
            .await
            .is_err()
    );
    proxy.release(Direction::ToClient);
    assert!(question.await.is_ok());

    proxy.latency(Direction::ToServer, Duration::from_millis(50));
    let start = std::time::Instant::now();
    client.simple_query("SELECT 1").await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(50));
    proxy.latency(Direction::ToServer, Duration::ZERO);

    proxy.half_open();
    assert!(
        tokio::time::timeout(Duration::from_millis(100), client.simple_query("SELECT 1"))
            .await
            .is_err()
    );

    proxy.cut();
    assert!(client.simple_query("SELECT 1").await.is_err());
    proxy.release(Direction::ToServer);
    proxy.release(Direction::ToClient);
    let client = connect().await.unwrap();
    proxy.cut_after(Direction::ToClient, 1000);
    assert!(client.simple_query("SELECT repeat('x', 100000)").await.is_err());

    proxy.refuse(true);
    assert!(connect().await.is_err());
    proxy.refuse(false);
    assert!(connect().await.is_ok());
}
