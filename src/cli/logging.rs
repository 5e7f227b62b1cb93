//! Where log lines go: to standard error, one line an event, as text or JSON.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

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
    // At `debug` it prints every statement's parameters: the rows themselves. Whatever the filter says, not here.
    let quiet = "tokio_postgres=warn".parse().context("read our own directive")?;
    let filter = filter.add_directive(quiet);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match format {
        LogFormat::Text => builder.with_ansi(has_colour()).try_init(),
        // Fields at the top level, where a query looks for them.
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(anyhow::Error::from_boxed).context("start the log")
}

/// Colour for people only, and <https://no-color.org>.
fn has_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
