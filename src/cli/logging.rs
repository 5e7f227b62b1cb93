//! The log of this process: to standard error, one line for each event, as text or JSON.

use std::io::IsTerminal;

use anyhow::Context;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::printable::{Escapes, OneLine};
use crate::config::LogFormat;
use crate::postgres::{DRIVER_LOG_TARGET, NOTICES_LOG_TARGET};

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
    let no_values = filter_fn(|line| {
        let target = line.target();
        // A database says in its notices what it likes, as often as it likes; a trigger's may quote values.
        !target.starts_with(NOTICES_LOG_TARGET)
            && (*line.level() <= Level::WARN || !target.starts_with(DRIVER_LOG_TARGET))
    });
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        LogFormat::Text => {
            let (ansi, escapes) = match has_colour() {
                true => (true, Escapes::AllButColours),
                false => (false, Escapes::All),
            };
            let writer = OneLine { inner: writer, escapes };
            lines.with_writer(writer).with_ansi(ansi).boxed()
        }
        // Fields at the top level, where a query looks for them.
        LogFormat::Json => lines
            .with_writer(OneLine {
                inner: writer,
                escapes: Escapes::Json,
            })
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
