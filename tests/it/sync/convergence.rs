//! Random programs and random accidents against the real binary: at the end both databases are equal, every change is
//! accounted for and nothing is parked.
//!
//! The seed is printed; `TWINLOG_SEED=7` runs that one again (the writers' interleaving is the machine's), and
//! `TWINLOG_CAMPAIGN_SECONDS=3600` runs one seed after another for that long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use twinlog::dev::postgres::{Cluster, Settings};

use super::program::{Program, SCHEMA, SEED_ROWS, TABLES};
use super::{balanced, on_both, parked, start_sync, until_equal};
use crate::harness::{ConfigFile, Databases, Process, SOON, eventually, eventually_equal, private_databases};

/// How long programs run where nobody says otherwise.
const BUDGET: Duration = Duration::from_secs(6);

/// Writers at the same time: their transactions interleave in the log.
const WRITERS: u64 = 2;

/// Accidents in one program.
const ACCIDENTS: usize = 8;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_and_accidents_end_with_both_databases_equal() {
    campaign(Role::Superuser).await;
}

/// As on a managed service: foreign keys and triggers hold for the daemon, too.
#[tokio::test(flavor = "multi_thread")]
async fn random_programs_and_accidents_end_with_both_databases_equal_for_a_role_without_privileges() {
    campaign(Role::Owner).await;
}

/// Who the daemon is in the Agent DB.
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

async fn run(db: Databases, seed: u64, role: Role) {
    eprintln!("TWINLOG_SEED={seed}");
    let mut agent_url = db.agent.url.clone();
    if role == Role::Owner {
        let name = &db.agent.name;
        db.agent
            .batch_execute(&format!(
                "CREATE ROLE {name} LOGIN PASSWORD '{name}'; ALTER DATABASE {name} OWNER TO {name}; SET ROLE {name}"
            ))
            .await
            .unwrap();
        agent_url = format!("postgres://{name}:{name}@127.0.0.1:{}/{name}", db.agent.cluster.port());
    }
    on_both(&db, SCHEMA).await;
    db.site.batch_execute(SEED_ROWS).await.unwrap();
    // Small batches and chunks, so that transactions cross their edges.
    let mut random = StdRng::seed_from_u64(seed);
    let config = ConfigFile::with_urls(
        &db.site.url,
        &agent_url,
        &db.site.name,
        &format!(
            "[sync]\ntables = [\"*\"]\nretry_initial_ms = 20\nretry_max_ms = 200\nreconnect_max_ms = 200\nbatch_rows = {}\ncopy_chunk_rows = {}\n",
            [1, 7, 100, 8192][random.random_range(0..4)],
            [3, 40, 10_000][random.random_range(0..3)],
        ),
    );
    let writers = Writers::start(&db, seed);
    let mut world = World {
        daemon: start_sync(&config).await,
        config,
        db,
        held: None,
        checked: false,
        log: Vec::new(),
    };
    for _ in 0..ACCIDENTS {
        writers.more(5 + random.random_range(0..30)).await;
        world.accident(&mut random).await;
    }
    writers.more(10).await;
    writers.end().await;
    world.recover().await;
    let World { db, log, .. } = &world;
    eprintln!("seed {seed}: {log:?}");
    eventually_equal("no row is parked", 2 * SOON, 0, || parked(db)).await;
    until_equal(db, TABLES, 2 * SOON).await;
    eventually("every table is copied", 2 * SOON, || async {
        let left: i64 = db
            .agent
            .query_one("SELECT count(*) FROM twinlog.tables WHERE state <> 'streaming'", &[])
            .await
            .unwrap()
            .get(0);
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    until_equal(db, TABLES, SOON).await;
    balanced(db).await;
}

struct World {
    db: Databases,
    config: ConfigFile,
    daemon: Process,
    /// A transaction that stays open.
    held: Option<Client>,
    /// Whether the Agent DB refuses some rows.
    checked: bool,
    log: Vec<&'static str>,
}

impl World {
    async fn accident(&mut self, random: &mut StdRng) {
        match random.random_range(0..7) {
            0 => {
                self.log.push("kill -9");
                self.daemon.kill9();
                self.daemon = Process::start(&self.config, &["sync"], "");
            }
            1 => {
                let points = [
                    "agent.before_commit",
                    "agent.after_commit",
                    "agent.after_park",
                    "copy.after_merge",
                    "copy.before_high_fence",
                    "heal.after_read",
                ];
                self.log.push("abort at a failpoint");
                let point = points[random.random_range(0..points.len())];
                let skipped = random.random_range(0..30);
                self.daemon.kill9();
                self.daemon = Process::start(
                    &self.config,
                    &["sync"],
                    &format!("{point}={skipped}*off->return(abort)"),
                );
            }
            2 => {
                self.log.push("walsender terminated");
                self.db
                    .site
                    .execute(
                        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active",
                        &[&self.db.site.name],
                    )
                    .await
                    .unwrap();
            }
            3 => {
                self.log.push("resync --all");
                // Whatever becomes of it: the daemon may be dead just now.
                self.db
                    .agent
                    .batch_execute(&format!(
                        "INSERT INTO twinlog.commands (slot, kind, arguments) VALUES ('{}', 'resync', '{{\"all\": true}}'); NOTIFY twinlog",
                        self.db.site.name
                    ))
                    .await
                    .unwrap();
            }
            4 => {
                self.log.push("failed retry");
                let mut retry = Process::start(&self.config, &["failed", "retry", "--wait", "0"], "");
                retry.wait(SOON).await;
            }
            5 => {
                self.log.push(if self.checked {
                    "constraint dropped"
                } else {
                    "constraint added"
                });
                self.check(!self.checked).await;
            }
            _ => match self.held.take() {
                Some(client) => {
                    self.log.push("held transaction ends");
                    let end = if random.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
                    client.batch_execute(end).await.unwrap();
                }
                None => {
                    self.log.push("transaction held open");
                    let client = self.db.site.connect().await;
                    client
                        .batch_execute(
                            "BEGIN; INSERT INTO docs SELECT i, 0, 'held', repeat('h', 5000) FROM generate_series(5000, 5100) i
                             ON CONFLICT DO NOTHING; UPDATE docs SET n = 1 WHERE id > 5050 AND id < 5200",
                        )
                        .await
                        .unwrap();
                    self.held = Some(client);
                }
            },
        }
    }

    /// Has the Agent DB refuse some rows, or all of them no more.
    async fn check(&mut self, checked: bool) {
        let statements = if checked {
            [
                "ALTER TABLE docs ADD CONSTRAINT picky CHECK (n % 5 <> 2) NOT VALID",
                "ALTER TABLE codes ADD CONSTRAINT picky CHECK (code NOT LIKE '%7') NOT VALID",
            ]
        } else {
            [
                "ALTER TABLE docs DROP CONSTRAINT picky",
                "ALTER TABLE codes DROP CONSTRAINT picky",
            ]
        };
        for statement in statements {
            // It may be the victim of a deadlock with the daemon.
            eventually(statement, SOON, || self.db.agent.batch_execute(statement)).await;
        }
        self.checked = checked;
    }

    /// Everything is mended; what failed before must heal by itself.
    async fn recover(&mut self) {
        if let Some(client) = self.held.take() {
            client.batch_execute("COMMIT").await.unwrap();
        }
        if self.checked {
            self.check(false).await;
        }
        self.daemon.kill9();
        self.daemon = start_sync(&self.config).await;
    }
}

struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(db: &Databases, seed: u64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let (cluster, name) = (Arc::clone(&db.site.cluster), db.site.name.clone());
            let program = Program::new(seed * WRITERS + writer);
            tasks.push(tokio::spawn(write(
                (cluster, name),
                program,
                Arc::clone(&stop),
                Arc::clone(&done),
            )));
        }
        Self { stop, done, tasks }
    }

    async fn more(&self, transactions: u64) {
        let goal = self.done.load(Ordering::Relaxed) + transactions;
        eventually("the writers go on", SOON, || async {
            let now = self.done.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(now) }
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

async fn write(database: (Arc<Cluster>, String), mut program: Program, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut client: Option<Client> = None;
    let mut round = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        // A COPY that is refused before it begins confuses the driver: the connection may end with it.
        let client = match &mut client {
            Some(client) if !client.is_closed() => client,
            slot => {
                let fresh = database.0.client(&database.1).await.unwrap();
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
                // A lock time-out: the rows are not there, which is a case, too.
                let _ = (sent, copy.finish().await);
            }
        }
        // Deadlocks, time-outs and unique violations roll back.
        if client.batch_execute(&program.transaction()).await.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        done.fetch_add(1, Ordering::Relaxed);
        // Leaves some of the machine to the daemon.
        tokio::task::yield_now().await;
    }
}
