//! What happens to servers, to the network between them and the Site DB, and to the Site DB.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use twinlog::dev::graph_simulator::Simulator;
use twinlog::dev::postgres::Shutdown;

use super::servers::Servers;
use crate::harness::{Databases, Direction, pace};

pub(super) struct Accidents {
    random: StdRng,
    /// What happened.
    pub(super) log: Vec<String>,
}

impl Accidents {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            log: Vec::new(),
        }
    }

    /// One accident.
    pub(super) async fn happen(&mut self, db: &mut Databases, meta: &Simulator, servers: &mut Servers) {
        let at = self.random.random_range(0..servers.len());
        let what = self.random.random_range(0..12);
        let pause = Duration::from_millis(self.random.random_range(100..1500));
        let network = servers.network(at);
        let name = match what {
            0 | 1 => {
                servers.kill9(at);
                // A killed server's lease of a number lasts for some seconds.
                db.on_site("UPDATE twinlog.number_leases SET lease_until = now()").await;
                "kill"
            }
            2 => {
                servers.restart(at).await;
                "restart"
            }
            3 => {
                network.cut();
                "cut"
            }
            4 => {
                network.silence();
                "silence"
            }
            5 => {
                network.half_open();
                pace(pause).await;
                network.cut();
                network.release(Direction::ToServer);
                network.release(Direction::ToClient);
                "half open"
            }
            6 => {
                let bytes = self.random.random_range(100..5000);
                network.cut_after(Direction::ToServer, bytes);
                "cut in a statement"
            }
            7 => {
                let bytes = self.random.random_range(100..5000);
                network.cut_after(Direction::ToClient, bytes);
                "cut in an answer"
            }
            8 => {
                let latency = Duration::from_millis(self.random.random_range(0..4));
                network.latency(Direction::ToClient, latency);
                "latency"
            }
            9 => {
                db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
                db.reconnect().await;
                "restart of the Site DB"
            }
            10 => {
                servers.signal(at, Signal::SIGSTOP);
                pace(pause).await;
                servers.signal(at, Signal::SIGCONT);
                "stopped for a while"
            }
            _ => {
                meta.pause_webhooks(true);
                pace(pause / 3).await;
                meta.pause_webhooks(false);
                "webhooks come late"
            }
        };
        self.log.push(format!("{name} {at}"));
    }

    /// Nothing stays broken.
    pub(super) fn end(&self, meta: &Simulator, servers: &Servers) {
        meta.pause_webhooks(false);
        for network in servers.networks() {
            network.latency(Direction::ToClient, Duration::ZERO);
            network.cut();
        }
    }
}
