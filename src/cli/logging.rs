//! Where log lines go: to standard error, one line an event, as text or JSON.

use std::io::IsTerminal;

use anyhow::Context;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Starts the log of this process. `filter` was checked with the configuration.
pub(super) fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    start_on(format, filter, std::io::stderr)
}

/// The same for a command that has something else on the terminal: `writer` takes the lines to standard error.
pub(super) fn start_on<W>(format: LogFormat, filter: &str, writer: W) -> anyhow::Result<()>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(filter).context("read log.filter")?;
    // At `debug` the driver prints every statement's parameters: the rows themselves. A filter of its own, because a directive
    // of ours would give way to a longer one.
    let no_values = filter_fn(|line| *line.level() <= Level::WARN || !line.target().starts_with("tokio_postgres"));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(has_colour()).boxed(),
        // Fields at the top level, where a query looks for them.
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(no_values)
        .try_init()
        .context("start the log")
}

/// Colour for people only, and <https://no-color.org>.
fn has_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
