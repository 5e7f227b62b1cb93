//! Random programs and random faults against the real binary: at the end both databases are equal, every change is
//! accounted for and nothing is parked.
//!
//! The seed is printed; `TWINLOG_SEED=7` runs that one again (the writers' interleaving is the machine's), and
//! `TWINLOG_CAMPAIGN_SECONDS=3600` runs one seed after another for that long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use twinlog::dev::postgres::{Cluster, Settings};

use super::program::{Program, SCHEMA, SEED_ROWS, TABLES};
use crate::harness::{
    Background, Daemon, Databases, Rounds, SOON, Twins, eventually, eventually_equal, private_databases,
};

/// How long programs run by default.
const BUDGET: Duration = Duration::from_secs(6);

/// Writers at the same time: their transactions interleave in the log.
const WRITERS: u64 = 2;

/// Faults during one program.
const ACCIDENTS: usize = 10;

/// A table that is dropped and created anew in the Site DB while writers write others.
const SPARE: &str = "CREATE TABLE spare (id int PRIMARY KEY, v text)";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_and_accidents_end_with_both_databases_equal() {
    campaign(Role::Superuser).await;
}

/// As on a managed service: foreign keys and triggers apply to the daemon too.
#[tokio::test(flavor = "multi_thread")]
async fn random_programs_and_accidents_end_with_both_databases_equal_for_a_role_without_privileges() {
    campaign(Role::Owner).await;
}

/// The daemon's role in the Agent DB.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Superuser,
    /// The tables' owner, and nothing else.
    Owner,
}

async fn campaign(role: Role) {
    let budget = number("TWINLOG_CAMPAIGN_SECONDS").map_or(BUDGET, Duration::from_secs);
    let end = Instant::now() + budget;
    // A transaction that is held open would hold up the other tests' slots.
    let clusters = private_databases(Settings::default(), Settings::default()).await;
    if let Some(seed) = number("TWINLOG_SEED") {
        return run(clusters.another().await, seed, role).await;
    }
    loop {
        run(clusters.another().await, rand::random::<u64>() % 1_000_000, role).await;
        if Instant::now() >= end {
            return;
        }
    }
}

async fn run(databases: Databases, seed: u64, role: Role) {
    eprintln!("TWINLOG_SEED={seed}");
    // GIVEN a daemon with small batches and chunks, so that transactions cross their edges
    let mut random = StdRng::seed_from_u64(seed);
    let mut twins = Twins::on(databases, "").await.with(&format!(
        "sync.tables = ['*']
         sync.retry_initial_ms = 20
         sync.retry_max_ms = 200
         sync.reconnect_max_ms = 200
         sync.batch_rows = {}
         sync.copy_chunk_rows = {}",
        [1, 7, 100, 8192][random.random_range(0..4)],
        [3, 40, 10_000][random.random_range(0..3)],
    ));
    if role == Role::Owner {
        twins.agent_is_owner().await;
    }
    twins.on_both(&format!("{SCHEMA}; {SPARE}")).await;
    twins.on_site(SEED_ROWS).await;

    // WHEN faults happen during random programs
    let writers = writers(&twins, seed);
    let mut world = World {
        daemon: twins.start().await,
        twins,
        held: None,
        checked: false,
        lacking: false,
        renamed: false,
        widened: false,
        log: Vec::new(),
    };
    for _ in 0..ACCIDENTS {
        writers.more(5 + random.random_range(0..30)).await;
        world.accident(&mut random).await;
    }
    writers.more(10).await;
    writers.end().await;
    world.recover().await;

    // THEN both databases are equal, and nothing is parked
    let World { twins, log, .. } = &world;
    eprintln!("seed {seed}: {log:?}");
    // Long, for a machine that does other work: an ordinary role writes with all constraints and triggers.
    twins.until_parked_within(8 * SOON, 0).await;
    let tables = &[TABLES, &["spare"]].concat();
    twins.until_equal_within(8 * SOON, tables).await;
    let not_copied = "SELECT count(*) FROM twinlog.tables WHERE state <> 'streaming'";
    eventually_equal("every table is copied", 8 * SOON, "0".to_owned(), || {
        twins.agent.value(not_copied)
    })
    .await;
    twins.until_equal(tables).await;
    twins.assert_balanced().await;
}

/// Where a daemon may die.
const POINTS: [&str; 6] = [
    "agent.before_commit",
    "agent.after_commit",
    "agent.after_park",
    "copy.after_merge",
    "copy.before_high_fence",
    "heal.after_read",
];

struct World {
    twins: Twins,
    daemon: Daemon,
    /// A transaction that stays open.
    held: Option<Client>,
    /// Whether the Agent DB refuses some rows.
    checked: bool,
    /// Whether a table of the Agent DB lacks a column, so that it is held.
    lacking: bool,
    /// Whether a table of the Site DB has another name.
    renamed: bool,
    /// Whether the table without a key has one column more, on both sides.
    widened: bool,
    log: Vec<&'static str>,
}

impl World {
    async fn accident(&mut self, random: &mut StdRng) {
        match random.random_range(0..11) {
            0 => {
                self.log.push("kill -9");
                self.daemon.relaunch_with("");
            }
            1 => {
                self.log.push("abort at a failpoint");
                let point = POINTS[random.random_range(0..POINTS.len())];
                let skipped = random.random_range(0..30);
                self.daemon
                    .relaunch_with(&format!("{point}={skipped}*off->return(abort)"));
            }
            2 => {
                self.log.push("walsender terminated");
                self.twins.terminate_walsender().await;
            }
            3 => {
                self.log.push("resync --all");
                // It may fail: perhaps no daemon runs just now.
                let slot = &self.twins.site.name;
                let request = format!(
                    "INSERT INTO twinlog.commands (slot, kind, arguments) VALUES ('{slot}', 'resync', '{{\"all\": true}}');
                     NOTIFY twinlog"
                );
                self.twins.on_agent(&request).await;
            }
            4 => {
                self.log.push("failed retry");
                // It may fail: perhaps no daemon runs just now.
                self.twins.run(&["failed", "retry", "--wait", "0"]).await;
            }
            5 => {
                self.log.push(if self.checked {
                    "constraint dropped"
                } else {
                    "constraint added"
                });
                self.check(!self.checked).await;
            }
            6 => {
                self.log.push(if self.lacking { "column back" } else { "column away" });
                self.lack(!self.lacking).await;
            }
            7 => {
                self.log.push(if self.renamed { "renamed back" } else { "renamed" });
                self.rename(!self.renamed).await;
            }
            8 => {
                self.log.push("dropped and created anew");
                let rows = random.random_range(0..500);
                let anew = format!(
                    "BEGIN; DROP TABLE spare; {SPARE}; INSERT INTO spare SELECT i, 'new' FROM generate_series(1, {rows}) i; COMMIT;
                     UPDATE spare SET v = 'changed' WHERE id % 7 = 0"
                );
                self.twins.on_site(&anew).await;
            }
            9 => {
                self.log
                    .push(if self.widened { "column dropped" } else { "column added" });
                self.widen(!self.widened, random.random_bool(0.5)).await;
            }
            _ => self.hold_or_end(random).await,
        }
    }

    /// Adds a column to the table without a key, or drops it: on one side after the other, while rows are written.
    async fn widen(&mut self, widened: bool, site_first: bool) {
        // Rows that exist get the Site DB's default there, which the log does not say.
        let (on_site, on_agent) = if widened {
            (
                "ALTER TABLE bag ADD more text DEFAULT 'more'",
                "ALTER TABLE bag ADD more text",
            )
        } else {
            ("ALTER TABLE bag DROP more", "ALTER TABLE bag DROP more")
        };
        let mut sides = [(&self.twins.agent, on_agent), (&self.twins.site, on_site)];
        if site_first {
            sides.reverse();
        }
        for (side, statement) in sides {
            // It may be the victim of a deadlock with the daemon, or with a writer.
            eventually(statement, SOON, || side.batch_execute(statement)).await;
        }
        self.widened = widened;
    }

    /// Renames a column of the Agent DB that the Site DB publishes, so that the table is held; or back.
    async fn lack(&mut self, lacking: bool) {
        let (from, to) = if lacking { ("v", "v_away") } else { ("v_away", "v") };
        let statement = format!("ALTER TABLE pairs RENAME {from} TO {to}");
        // It may be the victim of a deadlock with the daemon.
        eventually(&statement, SOON, || self.twins.agent.batch_execute(&statement)).await;
        self.lacking = lacking;
    }

    /// Renames a table of the Site DB, which the Agent DB does not have under that name; or back.
    async fn rename(&mut self, renamed: bool) {
        let (from, to) = if renamed {
            ("swaps", "swaps_away")
        } else {
            ("swaps_away", "swaps")
        };
        let statement = format!("ALTER TABLE {from} RENAME TO {to}");
        eventually(&statement, SOON, || self.twins.site.batch_execute(&statement)).await;
        self.renamed = renamed;
    }

    /// A transaction is opened and left open, or the open one ends.
    async fn hold_or_end(&mut self, random: &mut StdRng) {
        if let Some(client) = self.held.take() {
            self.log.push("held transaction ends");
            let end = if random.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
            client.batch_execute(end).await.unwrap();
            return;
        }
        self.log.push("transaction held open");
        let client = self.twins.site.connect().await;
        client
            .batch_execute(
                "BEGIN; INSERT INTO docs SELECT i, 0, 'held', repeat('h', 5000) FROM generate_series(5000, 5100) i
                 ON CONFLICT DO NOTHING; UPDATE docs SET n = 1 WHERE id > 5050 AND id < 5200",
            )
            .await
            .unwrap();
        self.held = Some(client);
    }

    /// Makes the Agent DB refuse some rows, or accept all again.
    async fn check(&mut self, checked: bool) {
        let statements = if checked {
            [
                "ALTER TABLE docs ADD CONSTRAINT picky CHECK (n % 5 <> 2) NOT VALID",
                "ALTER TABLE codes ADD CONSTRAINT picky CHECK (code NOT LIKE '%7') NOT VALID",
                "ALTER TABLE ring ADD CONSTRAINT picky CHECK (place % 5 <> 2) NOT VALID",
                "ALTER TABLE bag ADD CONSTRAINT picky CHECK (n <> 4) NOT VALID",
            ]
        } else {
            [
                "ALTER TABLE docs DROP CONSTRAINT picky",
                "ALTER TABLE codes DROP CONSTRAINT picky",
                "ALTER TABLE ring DROP CONSTRAINT picky",
                "ALTER TABLE bag DROP CONSTRAINT picky",
            ]
        };
        for statement in statements {
            // It may be the victim of a deadlock with the daemon.
            eventually(statement, SOON, || self.twins.agent.batch_execute(statement)).await;
        }
        self.checked = checked;
    }

    /// Removes all faults; what failed before must heal by itself.
    async fn recover(&mut self) {
        if let Some(client) = self.held.take() {
            client.batch_execute("COMMIT").await.unwrap();
        }
        if self.checked {
            self.check(false).await;
        }
        if self.lacking {
            self.lack(false).await;
        }
        if self.renamed {
            self.rename(false).await;
        }
        self.daemon.restart().await;
    }
}

/// Several at the same time; a round is one transaction.
fn writers(twins: &Twins, seed: u64) -> Background<()> {
    let (cluster, name) = (Arc::clone(&twins.site.cluster), twins.site.name.clone());
    Background::start(|rounds| async move {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let program = Program::new(seed * WRITERS + writer);
            writers.spawn(write(Arc::clone(&cluster), name.clone(), program, rounds.clone()));
        }
        writers.join_all().await;
    })
}

async fn write(cluster: Arc<Cluster>, database: String, mut program: Program, rounds: Rounds) {
    let mut client: Option<Client> = None;
    let mut round = 0_u32;
    while rounds.go_on() {
        round += 1;
        // A COPY that is refused before it begins confuses the driver: the connection may end with it.
        let client = match &mut client {
            Some(client) if !client.is_closed() => client,
            slot => {
                let fresh = cluster.client(&database).await.unwrap();
                // Locks that a held transaction has must not stop a writer.
                fresh.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
                slot.insert(fresh)
            }
        };
        if round.is_multiple_of(25) {
            let rows = program.bulk();
            if let Ok(copy) = client.copy_in::<_, Bytes>("COPY docs FROM STDIN").await {
                tokio::pin!(copy);
                let sent = copy.send(Bytes::from(rows)).await;
                // A lock time-out: the rows are not inserted, which is a valid case.
                let _ = (sent, copy.finish().await);
            }
        }
        // Deadlocks, time-outs and unique violations roll back.
        if client.batch_execute(&program.transaction()).await.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        rounds.count();
        // Leaves processor time to the daemon.
        tokio::task::yield_now().await;
    }
}
