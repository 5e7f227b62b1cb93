//! The set-up of the server's tests: a Site DB, the simulator of Meta, and the configuration of servers on them.

use std::time::Duration;

use sha2::{Digest, Sha256};
use twinlog::config::{self, Config, Needs};
use twinlog::dev::graph_simulator::{Delays, Fault, Settings, Simulator};
use twinlog::migrations;

use super::in_process::Server;
use super::{NUMBER, TOKEN};
use crate::harness::{Databases, SOON, databases, eventually_equal, eventually_is};

/// Databases, the simulator of Meta, and the configuration of servers on them.
pub(super) struct World {
    pub(super) db: Databases,
    pub(super) meta: Simulator,
    pub(super) config: Config,
}

/// The simulator reports statuses without a delay, so that tests need not wait.
pub(crate) fn prompt() -> Settings {
    Settings {
        delays: Delays {
            sent: Duration::from_millis(5),
            delivered: Some(Duration::from_millis(10)),
            read: None,
        },
        ..Settings::default()
    }
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(databases().await, prompt()).await
    }

    /// The same with a server on it.
    pub(super) async fn served() -> (Self, Server) {
        let world = Self::new().await;
        let server = world.serve().await;
        (world, server)
    }

    pub(super) async fn with(db: Databases, settings: Settings) -> Self {
        migrations::apply_site(&db.site.database_url()).await.unwrap();
        let meta = Simulator::start(settings).await.unwrap();
        let config = configuration(&db.site.url, &meta.url(), "simulator-token");
        Self { db, meta, config }
    }

    /// A server with the usual settings, to which Meta sends its webhooks.
    pub(super) async fn serve(&self) -> Server {
        let server = Server::start(self.config.clone()).await;
        self.meta.set_callback(Some(server.callback()));
        server.ready().await;
        server
    }

    pub(super) fn fault(&self, fault: Fault) {
        self.meta.set_fault(NUMBER, fault).unwrap();
    }

    pub(super) fn fault_once(&self, fault: Fault) {
        self.meta.set_fault_times(NUMBER, fault, 1).unwrap();
    }

    /// One value of the message's row, as text.
    pub(super) async fn column(&self, id: &str, column: &str) -> Option<String> {
        self.db
            .site
            .text(&format!("SELECT {column} FROM whatsapp_messages WHERE id = '{id}'"))
            .await
    }

    /// The same where it may not be NULL.
    pub(super) async fn value(&self, id: &str, column: &str) -> String {
        let value = self.column(id, column).await;
        value.unwrap_or_else(|| panic!("{column} of {id} is NULL"))
    }

    pub(super) async fn status(&self, id: &str) -> String {
        self.value(id, "status").await
    }

    /// The number of messages that satisfy the SQL condition.
    pub(super) async fn count(&self, condition: &str) -> i64 {
        let count = format!("SELECT count(*) FROM whatsapp_messages WHERE {condition}");
        self.db.site.value(&count).await.parse().unwrap()
    }

    /// Waits until `rows` messages satisfy the SQL condition.
    pub(super) async fn until_count(&self, rows: i64, condition: &str) {
        eventually_equal(&format!("messages with {condition}"), SOON, rows, || {
            self.count(condition)
        })
        .await;
    }

    /// How many messages Meta has accepted.
    pub(super) fn accepted(&self) -> usize {
        self.meta.ledger().messages.len()
    }

    /// Waits until Meta has accepted this number of messages.
    pub(super) async fn until_accepted(&self, messages: usize) {
        eventually_equal("messages that Meta has accepted", SOON, messages, async || {
            self.accepted()
        })
        .await;
    }

    /// Waits until the message has one of these statuses.
    pub(super) async fn reaches(&self, id: &str, statuses: &[&str]) {
        eventually_is(
            &format!("the status of {id} is one of {statuses:?}"),
            SOON,
            || self.status(id),
            |status| statuses.contains(&status.as_str()),
        )
        .await;
    }

    /// Waits until Meta has accepted the message.
    pub(super) async fn is_sent(&self, id: &str) {
        self.reaches(id, &["accepted", "sent", "delivered"]).await;
    }

    /// Everything that Meta accepted is one row with its wamid, and nothing was accepted twice.
    pub(super) async fn nothing_lost_or_doubled(&self) {
        let ledger = self.meta.ledger();
        assert_eq!(ledger.duplicates(), Vec::<&str>::new());
        for message in &ledger.messages {
            let rows = self.count(&format!("wamid = '{}'", message.wamid)).await;
            assert_eq!(rows, 1, "{message:?}");
        }
        assert_eq!(
            self.count("direction = 'outbound' AND (lead_id IS NULL OR conversation_id IS NULL)")
                .await,
            0
        );
    }
}

/// The server's part of a configuration.
pub(super) fn configuration(site: &str, graph: &str, access_token: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[site]\nurl = \"{site}\"\n{}", sections(graph, access_token));
    std::fs::write(file.path(), text).unwrap();
    let needs = Needs {
        site: true,
        agent: false,
        whatsapp: true,
    };
    config::load(Some(file.path()), needs).unwrap()
}

/// What a server's configuration holds beside its databases and listeners.
pub(crate) fn sections(graph: &str, access_token: &str) -> String {
    let sha256 = hex::encode(Sha256::digest(TOKEN));
    format!(
        r#"
        [whatsapp]
        graph_url = "{graph}"
        app_secrets = ["simulator-secret"]
        verify_token = "simulator-verify-token"
        send_timeout_ms = 1000
        retry_initial_ms = 50
        retry_max_ms = 1000
        hold_probe_ms = 1000
        [[whatsapp.accounts]]
        phone_number_id = "{NUMBER}"
        waba_id = "102290129340398"
        access_token = "{access_token}"
        messages_per_second = 500
        [[auth.tokens]]
        name = "crm"
        sha256 = "{sha256}"
        "#
    )
}
