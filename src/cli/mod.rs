//! The command line: the commands of the binary, what they print, and how the process ends.
//!
//! One file for each command. A command loads the parts of the configuration that it needs ([`Global::start`]), puts the
//! other modules together, and returns an [`Outcome`] or an error. This file prints the errors and decides the exit code.
//! No business logic lives here.
//!
//! | file | its job |
//! |---|---|
//! | `daemon` | `run`, `serve`, `sync`: the parts of a process, started and joined |
//! | `admin`, `systemd` | what such a process tells probes, Prometheus and systemd |
//! | `demo/` | server and daemon with traffic on temporary databases, compared at the end |
//! | `keep_alive` | keeps such a process able to answer and to end while a database holds it up |
//! | `doctor` | prints what [`crate::doctor`] finds |
//! | `migrate`, `status`, `resync`, `failed`, `cutover`, `why`, `trace`, `outbox`, `inbox`, `subscribers`, `simulate` | the commands of these names |
//! | `replicated` | what the daemon knows of a row |
//! | `server_status` | the server's part of `status` |
//! | `pipelines` | the configuration → the daemon's pipelines |
//! | `global`, `person`, `row_names`, `outcome`, `logging`, `report`, `printable` | options, results, log lines and errors of all commands |
//!
//! Exit codes: 0 success, 1 a problem was found or the work failed, 2 wrong usage or configuration.

pub mod admin;
pub mod systemd;

mod cutover;
mod daemon;
mod demo;
mod doctor;
mod failed;
mod global;
mod inbox;
mod keep_alive;
mod logging;
mod migrate;
mod outbox;
mod outcome;
mod own_daemon;
mod person;
mod pipelines;
mod printable;
mod replicated;
mod report;
mod resync;
mod row_names;
mod server_status;
mod simulate;
mod status;
mod subscribers;
mod trace;
mod verify;
mod why;

use std::pin::Pin;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::daemon::Halves;
use self::global::Global;
use self::outcome::Outcome;
use crate::config::ConfigError;

/// Keeps WhatsApp Business conversations safe in two Postgres databases.
///
/// Configuration: the defaults (config/default.toml), then the file, then environment variables TWINLOG__SECTION__KEY.
#[derive(Debug, Parser)]
#[command(
    name = "twinlog",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 a problem was found or the work failed, 2 wrong usage or configuration."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything on this machine with temporary databases, and compares them at the end
    ///
    /// Starts two temporary Postgres clusters and a simulator of Meta's Graph API, runs server and daemon on them, sends and
    /// receives messages, and compares both databases and the simulator's ledger at the end. Exits with 1 if anything
    /// differs.
    Demo(demo::Arguments),
    /// Creates or updates Twinlog's tables
    ///
    /// Does nothing where they are up to date. May run on several machines at the same time.
    Migrate(migrate::Arguments),
    /// Runs the server and the daemon in one process
    ///
    /// Runs until SIGTERM or Ctrl-C, and then finishes the work under way before it exits. Several processes may run: each
    /// number is sent for by one of them, and one daemon works while the others stand by.
    Run,
    /// Runs the server: the API and the webhook
    ///
    /// Needs the sections site, http, whatsapp and auth of the configuration.
    Serve,
    /// Runs the daemon, which applies the Site DB's changes to the Agent DB
    ///
    /// Needs the sections site, agent and sync of the configuration, and works on any tables that have a primary key.
    Sync,
    /// Examines the set-up, and says of each fault why it matters and what to paste; exits with 1 if there is a fault
    ///
    /// Looks at both databases (versions, rights, limits, slot, publication, every table), the server's addresses, the public
    /// URL as Meta would call it, the numbers, tokens and webhooks at Meta, and what browsers may read. Writes nothing to a
    /// database and sends no message.
    Doctor(doctor::Arguments),
    /// Shows servers, delay, slot, tables and failed rows; exits with 1 if there is a problem
    ///
    /// Reads only the databases, so it works from any machine, even if neither daemon nor server runs. Without agent.url
    /// it shows the servers alone.
    Status(status::Arguments),
    /// Reads tables again, online, and makes the Agent DB equal to the Site DB
    ///
    /// The running daemon does it; if none runs, this command does it itself. Meanwhile the tables stay readable and
    /// synchronised. Rows that only the Agent DB has are deleted.
    Resync(resync::Arguments),
    /// Proves that tables are equal in both databases, or lists the keys that differ; exits with 1 if anything does
    ///
    /// While both databases are written and read. The running daemon does it; if none runs, this command does it itself. Equal
    /// means: writing the Site DB's value now would leave the stored one as it is. With --repair, what differs is written as the
    /// Site DB has it, in the order of its log.
    Verify(verify::Arguments),
    /// Shows, retries or gives up the parked rows: those that the Agent DB refused
    ///
    /// The daemon also retries them by itself, each time with the row's current values from the Site DB.
    Failed(failed::Arguments),
    /// Says whether the Agent DB could take over now, and what lacks; exits with 1 if anything does
    ///
    /// Delay, held tables, parked rows, proofs, and sequences: the daemon moves those of the Agent DB forward. Changes nothing.
    Cutover(cutover::Arguments),
    /// Tells why a row of the Agent DB is as it is; exits with 1 if it differs from the Site DB's
    ///
    /// Reads the row in both databases, and what the daemon knows of it: parked, given up, filtered, its table held, the last proof.
    /// Needs no running daemon.
    Why(why::Arguments),
    /// Tells a message's whole story, and what is missing in it; exits with 1 if anything is
    ///
    /// Over the API, the Site DB, Meta, the webhooks and the Agent DB, with the times between the steps.
    Trace(trace::Arguments),
    /// Shows messages of ours that need a person, and decides about them
    ///
    /// Each decision is kept with its author and reason, in the transaction that changes the message: `twinlog trace` tells it.
    Outbox(outbox::Arguments),
    /// Processes kept webhook events again, after a fix
    Inbox(inbox::Arguments),
    /// Shows the receivers that webhooks are handed on to, and delivers to them again
    Subscribers(subscribers::Arguments),
    /// Runs the simulator of Meta's Graph API alone, to try a client without a business number
    ///
    /// It accepts what Meta would accept and reports statuses to the callback. HTTP routes, which it prints, make a user
    /// write a message or switch faults on. Needs no configuration and no database.
    Simulate(simulate::Arguments),
}

/// Exit code for usage and configuration, the same as clap's.
const EXIT_USAGE: u8 = 2;

/// Exit code if our output is closed (`twinlog status | head`): what a shell reports for a program that SIGPIPE ended.
const EXIT_PIPE: u8 = 141;

/// Runs the command that the process's arguments name, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One TLS provider for everything: without this the first connection would have to guess. Fails only if there is one
    // already, and then it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Reads FAILPOINTS; lives as long as the process.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();

    exit_code(run_to_end(cli))
}

/// A command, ready to run.
type Work = Pin<Box<dyn Future<Output = anyhow::Result<Outcome>>>>;

/// Starts the runtime and runs the command on it.
fn run_to_end(cli: Cli) -> anyhow::Result<Outcome> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let work = work(cli, &mut builder)?;
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(work);
    // A blocking task that hangs (a name that does not resolve) must not keep the process.
    runtime.shutdown_background();
    result
}

/// The work of a command, and what it needs of the runtime.
fn work(cli: Cli, builder: &mut tokio::runtime::Builder) -> anyhow::Result<Work> {
    let Cli { global, command } = cli;
    Ok(match command {
        Command::Migrate(arguments) => Box::pin(async move { Box::pin(migrate::run(&global, &arguments)).await }),
        Command::Demo(arguments) => Box::pin(async move { Box::pin(demo::run(&arguments, global.log_format)).await }),
        Command::Run => until_signal(&global, Halves::Both, builder)?,
        Command::Serve => until_signal(&global, Halves::Server, builder)?,
        Command::Sync => until_signal(&global, Halves::Daemon, builder)?,
        Command::Doctor(arguments) => Box::pin(async move { Box::pin(doctor::run(&global, &arguments)).await }),
        Command::Status(arguments) => Box::pin(async move { Box::pin(status::run(&global, &arguments)).await }),
        Command::Resync(arguments) => Box::pin(async move { Box::pin(resync::run(&global, &arguments)).await }),
        Command::Verify(arguments) => Box::pin(async move { Box::pin(verify::run(&global, &arguments)).await }),
        Command::Failed(arguments) => Box::pin(async move { Box::pin(failed::run(&global, &arguments)).await }),
        Command::Cutover(arguments) => Box::pin(async move { Box::pin(cutover::run(&global, &arguments)).await }),
        Command::Why(arguments) => Box::pin(async move { Box::pin(why::run(&global, &arguments)).await }),
        Command::Trace(arguments) => Box::pin(async move { Box::pin(trace::run(&global, &arguments)).await }),
        Command::Outbox(arguments) => Box::pin(async move { Box::pin(outbox::run(&global, &arguments)).await }),
        Command::Inbox(arguments) => Box::pin(async move { Box::pin(inbox::run(&global, &arguments)).await }),
        Command::Subscribers(arguments) => {
            Box::pin(async move { Box::pin(subscribers::run(&global, &arguments)).await })
        }
        Command::Simulate(arguments) => {
            Box::pin(async move { Box::pin(simulate::run(&arguments, global.log_format)).await })
        }
    })
}

fn until_signal(global: &Global, halves: Halves, builder: &mut tokio::runtime::Builder) -> anyhow::Result<Work> {
    let config = global.start(halves.needs())?;
    if halves.server() {
        builder.worker_threads(keep_alive::worker_threads(&config));
    }
    Ok(Box::pin(daemon::run(config, halves)))
}

/// Prints the error, if there is one.
fn exit_code(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Problem) => ExitCode::FAILURE,
        Err(error) if is_closed_output(&error) => ExitCode::from(EXIT_PIPE),
        Err(error) => {
            report::error(&error);
            if error.is::<ConfigError>() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whether the error is that our own output is closed. (A connection's error comes inside an error of its module.)
fn is_closed_output(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
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
