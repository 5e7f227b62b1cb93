//! The options that every command takes.

use std::path::PathBuf;

use super::logging;
use crate::config::{self, Config, LogFormat, Needs};

/// The options that every command takes.
#[derive(Debug, clap::Args)]
pub(super) struct Global {
    /// The configuration file (TOML)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TWINLOG_CONFIG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(super) config: Option<PathBuf>,
    /// The format of log lines; overrides `log.format`
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Global options")]
    pub(super) log_format: Option<LogFormat>,
}

impl Global {
    /// Loads the parts of the configuration that a command needs, and starts the log as it says.
    pub(super) fn start(&self, needs: Needs) -> anyhow::Result<Config> {
        let config = config::load(self.config.as_deref(), needs)?;
        logging::start(self.log_format.unwrap_or(config.log.format), &config.log.filter)?;
        Ok(config)
    }

    /// Whether the configuration has what a command needs.
    pub(super) fn check(&self, needs: Needs) -> anyhow::Result<()> {
        config::load(self.config.as_deref(), needs)?;
        Ok(())
    }
}
