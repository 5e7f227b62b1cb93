//! The real binary, `twinlog serve`, on a test's databases.

use serde_json::Value;

use super::TOKEN;
use super::in_process::{Answer, try_answer};
use super::world::{World, sections};
use crate::harness::{ConfigFile, Process, SOON, http_client};

/// `twinlog serve`, with Meta's webhooks going to it.
pub(super) struct Binary {
    pub(super) process: Process,
    pub(super) config: ConfigFile,
    pub(super) http: reqwest::Client,
}

impl Binary {
    pub(super) async fn start(world: &World) -> Self {
        Self::start_with(world, "", "info").await
    }

    /// One that dies there.
    pub(super) async fn dying_at(world: &World, failpoint: &str) -> Self {
        Self::start_with(world, &format!("{failpoint}=return(abort)"), "info").await
    }

    /// `log` is the filter of its log.
    pub(super) async fn start_with(world: &World, failpoints: &str, log: &str) -> Self {
        let more = format!(
            "{}\n[log]\nfilter = \"{log}\"",
            sections(&world.meta.url(), "simulator-token")
        );
        Self::configured(world, &more, failpoints).await
    }

    /// One with another configuration than the usual.
    pub(super) async fn on(world: &World, more: &str) -> Self {
        Self::configured(world, more, "").await
    }

    /// The same with failpoints.
    pub(super) async fn configured(world: &World, more: &str, failpoints: &str) -> Self {
        let config = ConfigFile::new(&world.db, more);
        let mut process = Process::start(&config, &["serve"], failpoints);
        process.wait_for_output("listening", SOON).await;
        world.meta.set_callback(Some(config.http("/webhook").parse().unwrap()));
        Self {
            process,
            config,
            http: http_client(),
        }
    }

    /// A send over the plain API; no answer where the server dies before it.
    pub(super) async fn plain(&self, body: &Value) -> reqwest::Result<Answer> {
        let request = self.http.post(self.config.http("/v1/messages")).bearer_auth(TOKEN);
        try_answer(request.body(body.to_string()).send().await?).await
    }

    pub(super) async fn dies(&mut self) {
        let status = self.process.wait(SOON).await;
        assert!(!status.success(), "{status}");
    }
}
