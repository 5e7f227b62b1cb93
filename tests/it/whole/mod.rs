//! The whole system as it runs in production: the real binary, both databases, Meta, clients and users, in the middle of
//! everything that can go wrong at once. Whatever happened, at the end nothing is lost, doubled or different.
//!
//! | file | what is in it |
//! |---|---|
//! | `processes` | the binary: one process for everything, or one for each half |
//! | `traffic` | clients and users, and Meta's moods |
//! | `proof` | what must be so at the end |

mod processes;
mod proof;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use twinlog::dev::graph_simulator::Simulator;
use twinlog::dev::postgres::{Settings, Shutdown};

use self::processes::Twinlog;
use self::proof::{everything_is_there_once, settled};
use self::traffic::Traffic;
use crate::harness::private_databases;
use crate::server::prompt;

/// After the storm everything must settle within this: a lost client's row is swept after send_by and some seconds.
pub(super) const SETTLED: Duration = Duration::from_secs(45);

/// The storm, for these processes (the first one is the server).
async fn survives(commands: &[&'static str]) {
    // GIVEN the whole system
    let mut db = private_databases(Settings::default(), Settings::default()).await;
    db.migrate().await;
    let meta = Arc::new(Simulator::start(prompt()).await.unwrap());
    let mut twinlog = Twinlog::new(&db, &meta, commands);
    meta.set_callback(Some(twinlog.http("/webhook").parse().unwrap()));
    twinlog.start().await;
    twinlog.ready().await;

    // WHEN everything dies, one after another, in the middle of traffic
    let traffic = Traffic::start(&twinlog, &meta);
    traffic.more(40).await;

    for round in 0..4 {
        for at in 0..commands.len() {
            twinlog.kill9(&db, at).await;
            traffic.more(10).await;
        }
        // Now and then a young one dies before it is ready.
        if round % 2 == 0 {
            twinlog.ready().await;
        }
    }
    db.terminate_walsender().await;
    traffic.more(20).await;
    db.agent.cluster.restart(Shutdown::Kill).await.unwrap();
    traffic.more(20).await;
    db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
    db.reconnect().await;
    traffic.more(20).await;
    db.terminate_walsender().await;
    twinlog.kill9(&db, 0).await;
    traffic.more(20).await;

    // A clean restart during the traffic: it leaves no lease or lock that the next process would have to wait for.
    twinlog.stop().await;
    twinlog.start().await;
    traffic.more(40).await;

    // THEN everything is there, once
    let (wanted, written) = traffic.end().await;
    twinlog.ready().await;
    settled(&db, &meta).await;
    everything_is_there_once(&db, &meta, &wanted, &written).await;
    twinlog.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_for_everything_loses_doubles_and_confuses_nothing() {
    Box::pin(survives(&["run"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_a_daemon_lose_double_and_confuse_nothing() {
    Box::pin(survives(&["serve", "sync"])).await;
}
