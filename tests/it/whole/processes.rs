//! The processes under test: started, killed, stopped as systemd stops them.

use std::time::{Duration, Instant};

use twinlog::dev::graph_simulator::Simulator;

use super::traffic::client;
use crate::harness::{ConfigFile, Databases, Process, SOON, eventually};
use crate::server::sections;

/// Short waits everywhere, and a log that tells the story if it ends badly.
const QUICK: &str = "
    [sync]
    retry_initial_ms = 50
    retry_max_ms = 500
    reconnect_max_ms = 500
    [http]
    send_wait_ms = 1500
";

/// The processes: one that is both halves, or one for each.
pub(super) struct Twinlog {
    configs: Vec<(ConfigFile, &'static str)>,
    running: Vec<Process>,
}

impl Twinlog {
    pub(super) fn new(db: &Databases, meta: &Simulator, commands: &[&'static str]) -> Self {
        let more = format!("{QUICK}{}", sections(&meta.url(), "simulator-token"));
        let configs = commands.iter().map(|&command| (ConfigFile::new(db, &more), command));
        Self {
            configs: configs.collect(),
            running: Vec::new(),
        }
    }

    /// Where clients and Meta find the server: the first process has it.
    pub(super) fn http(&self, path: &str) -> String {
        self.configs[0].0.http(path)
    }

    pub(super) async fn start(&mut self) {
        for at in 0..self.configs.len() {
            self.start_one(at).await;
        }
    }

    async fn start_one(&mut self, at: usize) {
        let (config, command) = &self.configs[at];
        let mut process = Process::start(config, &[command], "");
        process.wait_for_output("listening", SOON).await;
        if at < self.running.len() {
            self.running[at] = process;
        } else {
            self.running.push(process);
        }
    }

    pub(super) async fn ready(&self) {
        let http = client();
        for (config, command) in &self.configs {
            eventually(&format!("{command} is ready"), SOON, || async {
                let asked = http.get(config.admin("/readyz")).send().await;
                let answer = asked.map_err(|error| error.to_string())?;
                match answer.status().as_u16() {
                    200 => Ok(()),
                    _ => Err(answer.text().await.unwrap_or_default()),
                }
            })
            .await;
        }
    }

    /// `kill -9`, and at once the next one.
    pub(super) async fn kill9(&mut self, db: &Databases, at: usize) {
        self.running[at].kill9();
        if at == 0 {
            time_passes(db).await;
        }
        self.start_one(at).await;
    }

    /// As systemd stops them: they end by themselves, well, and in time.
    pub(super) async fn stop(&mut self) {
        let began = Instant::now();
        for process in &self.running {
            process.terminate();
        }
        for process in &mut self.running {
            let status = process.wait(Duration::from_secs(20)).await;
            let took = began.elapsed();
            assert!(
                status.success() && took < Duration::from_secs(10),
                "{status} after {took:?}: {}",
                process.output()
            );
        }
    }
}

/// What a dead server's leases would need some 20 s for. Only after a death: a living one's attempts are its own.
async fn time_passes(db: &Databases) {
    db.on_site(
        "UPDATE twinlog.number_leases SET lease_until = now();
         UPDATE whatsapp_messages SET lease_until = now() WHERE status = 'sending'",
    )
    .await;
}
