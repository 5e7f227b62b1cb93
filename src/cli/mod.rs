//! The command line: what can be asked of the binary, and how it answers.
//!
//! One file for each command. A command reads the configuration as far as it needs it, puts the parts together, and
//! returns an [`Outcome`] or an error; printing errors and exit codes are decided here, once. No business logic lives here.
//!
//! Exit codes: 0 success, 1 the work found or hit a problem, 2 usage or configuration.

pub mod admin;
pub mod systemd;

mod daemon;
mod demo;
mod failed;
mod logging;
mod migrate;
mod report;
mod resync;
mod simulate;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::daemon::Halves;
use crate::config::{self, Config, LogFormat, Needs};

/// Keeps WhatsApp Business conversations safe in two Postgres databases.
///
/// Configuration: the defaults (config/default.toml), then the file, then environment variables TWINLOG__SECTION__KEY.
#[derive(Debug, Parser)]
#[command(
    name = "twinlog",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 the work found or hit a problem, 2 usage or configuration."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
struct Global {
    /// The configuration file (TOML)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TWINLOG_CONFIG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,
    /// How log lines look, instead of `log.format`
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Global options")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows everything at work on this machine, from nothing, and proves it
    ///
    /// Starts two throwaway Postgres clusters and a simulator of Meta's Graph API, runs server and daemon on them, sends and
    /// receives real traffic, and compares both databases and the simulator's ledger at the end. Exits 1 if anything differs.
    Demo(demo::Arguments),
    /// Creates or updates Twinlog's tables
    ///
    /// Safe to repeat, and safe to run from several machines at once.
    Migrate(migrate::Arguments),
    /// Runs the server and the daemon in one process
    ///
    /// Until SIGTERM or Ctrl-C; then what is under way is ended first. Several may run: they share the sending, and of the
    /// daemons one works and the others stand by.
    Run,
    /// Runs the server: the API and the webhook
    ///
    /// Needs the sections site, http, whatsapp and auth of the configuration.
    Serve,
    /// Runs the daemon: the Site DB's changes into the Agent DB
    ///
    /// Needs the sections site, agent and sync of the configuration, and works on any tables that have a primary key.
    Sync,
    /// Shows lag, slot, tables and failed rows; exits 1 if anything is not well
    ///
    /// Asks only the Agent DB, so it works from any machine, whatever state the daemon is in.
    Status(status::Arguments),
    /// Reads tables again, online, and makes the Agent DB equal to the Site DB
    ///
    /// Through the running daemon, or by itself if none runs. The tables stay readable and go on being synchronised; rows
    /// that only the Agent DB has are deleted.
    Resync(resync::Arguments),
    /// Parked rows: what the Agent DB refused
    ///
    /// They are tried again by themselves, with the row's present state from the Site DB.
    Failed(failed::Arguments),
    /// Runs the simulator of Meta's Graph API alone, to try a client without a business number
    ///
    /// It accepts what Meta would, reports statuses to the callback, lets people write, and fails on demand: its switches
    /// are HTTP routes, which it prints. Needs no configuration and no database.
    Simulate(simulate::Arguments),
}

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All is well: exit code 0.
    Success,
    /// It did its work and what it found is not well: exit code 1. It has said so itself.
    Problem,
}

/// Exit code for usage and configuration, as clap's own.
const EXIT_USAGE: u8 = 2;

/// Exit code where nobody reads our output any more (`twinlog status | head`): what a shell says of a program that SIGPIPE
/// ended, as it ends most.
const EXIT_PIPE: u8 = 141;

/// Runs the command of this process's arguments and says how the process shall end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for everything: without this the first TLS connection would have to guess. Fails only if there is one
    // already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Reads FAILPOINTS; lives as long as the process.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();

    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report::error(&anyhow::Error::new(error).context("start the runtime"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli));
    // A blocking task that hangs (a name that does not resolve) must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Problem) => ExitCode::FAILURE,
        Err(error) if is_closed_output(&error) => ExitCode::from(EXIT_PIPE),
        Err(error) => {
            report::error(&error);
            if error.is::<config::ConfigError>() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whether our own output failed, in that nobody reads it. Errors of connections come within errors of their modules.
fn is_closed_output(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Migrate(arguments) => Box::pin(migrate::run(&cli.global, &arguments)).await,
        Command::Demo(arguments) => Box::pin(demo::run(&arguments, cli.global.log_format)).await,
        Command::Run => Box::pin(daemon::run(&cli.global, Halves::Both)).await,
        Command::Serve => Box::pin(daemon::run(&cli.global, Halves::Server)).await,
        Command::Sync => Box::pin(daemon::run(&cli.global, Halves::Daemon)).await,
        Command::Status(arguments) => Box::pin(status::run(&cli.global, &arguments)).await,
        Command::Resync(arguments) => Box::pin(resync::run(&cli.global, &arguments)).await,
        Command::Failed(arguments) => Box::pin(failed::run(&cli.global, &arguments)).await,
        Command::Simulate(arguments) => Box::pin(simulate::run(&arguments, cli.global.log_format)).await,
    }
}

impl Global {
    /// Loads what a command needs of the configuration and starts the log with it.
    fn start(&self, needs: Needs) -> anyhow::Result<Config> {
        let config = config::load(self.config.as_deref(), needs)?;
        logging::start(self.log_format.unwrap_or(config.log.format), &config.log.filter)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
