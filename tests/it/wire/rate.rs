//! How fast a backlog is read, and how soon a lone change. Run by hand on a quiet machine, for the numbers in the header
//! of `wire::pace`: `cargo test --test it wire::rate -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use twinlog::lsn::Lsn;
use twinlog::wire::{Frame, ReplicationConnection};

use crate::harness;

/// From before a lone insert is sent until its frames are here, behind a backlog and on a quiet stream.
#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn a_lone_change_is_here_at_once() {
    let db = harness::databases().await;
    db.site
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR ALL TABLES")
        .await
        .unwrap();
    let slot = db.site.name.parse().unwrap();
    let mut connection = ReplicationConnection::connect(&db.site.database_url(), "twinlog-test")
        .await
        .unwrap();
    connection.create_slot(&slot, Duration::from_secs(10)).await.unwrap();
    let (mut stream, _feedback) = connection
        .start_replication(&slot, Lsn::INVALID, &["p".to_owned()])
        .await
        .unwrap();
    db.site
        .batch_execute("INSERT INTO t SELECT generate_series(-100000, -1)")
        .await
        .unwrap();
    let (mut commits, mut times) = (0, Vec::new());
    for id in 0..=200 {
        let began = Instant::now();
        if id > 0 {
            db.site
                .batch_execute(&format!("INSERT INTO t VALUES ({id})"))
                .await
                .unwrap();
        }
        while commits <= id {
            for frame in stream.next().await.unwrap().unwrap() {
                if let Frame::XLogData { payload, .. } = frame {
                    commits += i32::from(payload.starts_with(b"C"));
                }
            }
        }
        times.push(began.elapsed());
    }
    times[1..].sort();
    eprintln!("lone insert: median {:?}, 99 % {:?}", times[100], times[198]);
}

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn a_backlog_is_read_at_the_walsenders_rate() {
    let db = harness::databases().await;
    db.site
        .batch_execute(
            "CREATE TABLE a (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
             CREATE TABLE h (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
             ALTER TABLE h REPLICA IDENTITY FULL;
             INSERT INTO a SELECT i, 1, 0, '' FROM generate_series(1, 100000) i;
             CREATE PUBLICATION p FOR ALL TABLES",
        )
        .await
        .unwrap();
    let slot = db.site.name.parse().unwrap();
    let url = db.site.database_url();
    let mut connection = ReplicationConnection::connect(&url, "twinlog-test").await.unwrap();
    connection.create_slot(&slot, Duration::from_secs(10)).await.unwrap();
    db.site
        .batch_execute(
            "DO $$ BEGIN FOR i IN 1..150000 LOOP
                UPDATE a SET abalance = abalance + i WHERE aid = 1 + (i * 7919) % 100000;
                INSERT INTO h VALUES (1, 1, i, i, now());
                COMMIT;
             END LOOP; END $$",
        )
        .await
        .unwrap();
    let end: Lsn = db
        .site
        .text("SELECT pg_current_wal_lsn()")
        .await
        .unwrap()
        .parse()
        .unwrap();
    let socket_url = db.site.cluster.socket_url(&db.site.name).parse().unwrap();
    for (name, url) in [
        ("tcp", &url),
        ("unix", &socket_url),
        ("tcp", &url),
        ("unix", &socket_url),
    ] {
        let connection = ReplicationConnection::connect(url, "twinlog-test").await.unwrap();
        let (mut stream, _feedback) = connection
            .start_replication(&slot, Lsn::INVALID, &["p".to_owned()])
            .await
            .unwrap();
        let (began, mut frames, mut batches, mut bytes) = (Instant::now(), 0, 0, 0);
        'reading: loop {
            batches += 1;
            for frame in stream.next().await.unwrap().unwrap() {
                match frame {
                    Frame::XLogData { payload, .. } => {
                        frames += 1;
                        bytes += payload.len();
                    }
                    Frame::KeepAlive { wal_end, .. } if wal_end >= end => break 'reading,
                    Frame::KeepAlive { .. } => {}
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        eprintln!(
            "{name}: {frames} frames, {:.0} frames/s, {:.1} MB/s, {:.0} frames a batch",
            f64::from(frames) / seconds,
            bytes as f64 / seconds / 1e6,
            f64::from(frames) / f64::from(batches),
        );
        stream.close().await.unwrap();
    }
}
