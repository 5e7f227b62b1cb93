//! The processes under test, each with a network of its own between it and the Site DB.

use std::sync::Arc;

use nix::sys::signal::Signal;
use twinlog::dev::graph_simulator::Simulator;

use super::{NUMBERS, SOON};
use crate::harness::{ConfigFile, Databases, Process, Proxy, eventually, http_client};
use crate::server::sections;

/// Short waits everywhere.
const QUICK: &str = "
    [http]
    send_wait_ms = 1500
    [log]
    filter = 'info,twinlog=debug'
";

struct Server {
    config: ConfigFile,
    network: Proxy,
    process: Process,
}

/// Servers behind a load balancer that does not look whether they live.
pub(super) struct Servers {
    servers: Vec<Server>,
    /// What the processes said that have ended.
    said: String,
}

impl Servers {
    pub(super) async fn start(db: &Databases, meta: &Arc<Simulator>, count: usize) -> Self {
        let mut servers = Vec::new();
        for _ in 0..count {
            let network = Proxy::start(db.site.cluster.port()).await;
            let url = db.site.url_through(network.port());
            let config = ConfigFile::layered(
                &url,
                &db.agent.url,
                &db.site.name,
                &[&sections(&meta.url(), "simulator-token"), &numbers(), QUICK],
            );
            let process = Process::start(&config, &["serve"], "");
            servers.push(Server {
                config,
                network,
                process,
            });
        }
        let mut servers = Self {
            servers,
            said: String::new(),
        };
        servers.are_ready().await;
        servers
    }

    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// Where clients find each of them.
    pub(super) fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.config.http("")).collect()
    }

    pub(super) fn network(&self, at: usize) -> &Proxy {
        &self.servers[at].network
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = &Proxy> {
        self.servers.iter().map(|server| &server.network)
    }

    pub(super) fn signal(&self, at: usize, signal: Signal) {
        self.servers[at].process.signal(signal);
    }

    pub(super) fn kill9(&mut self, at: usize) {
        self.servers[at].process.kill9();
        self.start_again(at);
    }

    /// As systemd stops and starts it.
    pub(super) async fn restart(&mut self, at: usize) {
        self.stop(at).await;
        self.start_again(at);
    }

    async fn stop(&mut self, at: usize) {
        let process = &mut self.servers[at].process;
        process.terminate();
        let status = process.wait(SOON).await;
        assert!(status.success(), "{status}: {}", process.output());
    }

    fn start_again(&mut self, at: usize) {
        let server = &mut self.servers[at];
        self.said.push_str(&server.process.output());
        server.process = Process::start(&server.config, &["serve"], "");
    }

    /// Stops all and starts them again. What is still `sending` then is of processes that were killed: their leases, which
    /// last some 20 s, are ended here.
    pub(super) async fn replace(&mut self, db: &Databases) {
        for at in 0..self.len() {
            self.stop(at).await;
        }
        db.on_site(
            "UPDATE twinlog.number_leases SET lease_until = now();
             UPDATE whatsapp_messages SET lease_until = now() WHERE status = 'sending'",
        )
        .await;
        for at in 0..self.len() {
            self.start_again(at);
        }
        self.are_ready().await;
    }

    pub(super) async fn end(&mut self) {
        for at in 0..self.len() {
            self.stop(at).await;
            self.said.push_str(&self.servers[at].process.output());
        }
    }

    /// Everything that they have said; complete after [`Self::end`].
    pub(super) fn said(&self) -> &str {
        &self.said
    }

    async fn are_ready(&mut self) {
        let http = http_client();
        for server in &self.servers {
            eventually("a server is ready", SOON, || async {
                let asked = http.get(server.config.admin("/readyz")).send().await;
                let answer = asked.map_err(|error| error.to_string())?;
                match answer.status().as_u16() {
                    200 => Ok(()),
                    _ => Err(answer.text().await.unwrap_or_default()),
                }
            })
            .await;
        }
    }
}

fn numbers() -> String {
    let number = |id: &&str| {
        format!(
            "[[whatsapp.accounts]]
             phone_number_id = '{id}'
             waba_id = '102290129340398'
             access_token = 'simulator-token'
             messages_per_second = 500
            "
        )
    };
    NUMBERS.iter().map(number).collect()
}
