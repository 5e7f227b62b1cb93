//! The log of this process: to standard error, one line for each event, as text or JSON.

use std::io::IsTerminal;

use anyhow::Context;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::printable::{Colours, OneLine};
use crate::config::LogFormat;
use crate::postgres::DRIVER_LOG_TARGET;

/// Starts the log. The configuration has checked that `filter` parses.
pub(super) fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    start_on(format, filter, std::io::stderr)
}

/// As [`start`], for a command that also draws on the terminal: `writer` puts the lines on standard error without tearing
/// what is drawn.
pub(super) fn start_on<W>(format: LogFormat, filter: &str, writer: W) -> anyhow::Result<()>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(filter).context("read log.filter")?;
    // At `debug` the driver prints the parameters of every statement, and those are rows. A second filter, because in `filter`
    // a longer directive of the operator's would override ours.
    let no_values = filter_fn(|line| *line.level() <= Level::WARN || !line.target().starts_with(DRIVER_LOG_TARGET));
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        LogFormat::Text => {
            let (ansi, colours) = match has_colour() {
                true => (true, Colours::Pass),
                false => (false, Colours::Escaped),
            };
            let writer = OneLine { inner: writer, colours };
            lines.with_writer(writer).with_ansi(ansi).boxed()
        }
        // Fields at the top level, where a query looks for them. JSON has escapes of its own.
        LogFormat::Json => lines
            .with_writer(writer)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(no_values)
        .try_init()
        .context("start the log")
}

/// Colour only on a terminal, and not if <https://no-color.org> says no.
fn has_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
