//! `[log]`: how much is logged, and in which form.

use crate::config::reader::ValueReader;

/// Logging.
#[derive(Debug, Clone)]
pub struct Log {
    /// How lines look, if the command line does not say.
    pub format: LogFormat,
    /// `tracing`'s filter directives; they parse.
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(super) fn log(reader: &mut ValueReader<'_>) -> Option<Log> {
    let format = reader.text("log.format").and_then(|text| match text.parse() {
        Ok(format) => Some(format),
        Err(_) => reader.wrong(
            "log.format",
            format!("{text:?} is not a log format"),
            "set it to \"text\" or \"json\"",
        ),
    });
    let filter =
        reader
            .text("log.filter")
            .and_then(|text| match tracing_subscriber::EnvFilter::builder().parse(&text) {
                Ok(_) => Some(text),
                Err(error) => reader.wrong(
                    "log.filter",
                    format!("{text:?} is not a filter: {error}"),
                    "write it as in \"info\" or \"info,twinlog::replication=debug\"",
                ),
            });
    Some(Log {
        format: format?,
        filter: filter?,
    })
}
