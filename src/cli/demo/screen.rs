//! The demo's output: a live line at the bottom of a terminal, and plain lines and the log's lines above it.
//!
//! All output goes through here: a line that is written while the live one is drawn would tear it.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Standard output, a terminal or not. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    live: MultiProgress,
    words: Words,
}

/// Whether the lines for people are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Printed,
    /// Standard output is for a program.
    LeftOut,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            live: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
            words: Words::Printed,
        }
    }

    /// One that shows nothing but the log's lines.
    pub(super) fn silent() -> Self {
        Self {
            live: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            words: Words::LeftOut,
        }
    }

    /// Whether a live line would be seen; otherwise plain lines are printed.
    pub(super) fn is_live(&self) -> bool {
        !self.live.is_hidden()
    }

    /// Prints one line.
    pub(super) fn say(&self, line: impl AsRef<str>) {
        if self.words == Words::LeftOut {
            return;
        }
        // Nothing can be done if the terminal is gone.
        let _ = self
            .live
            .suspend(|| writeln!(anstream::stdout().lock(), "{}", line.as_ref()));
    }

    /// The live line.
    pub(super) fn live(&self) -> ProgressBar {
        let style =
            ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        self.live.add(ProgressBar::new_spinner().with_style(style))
    }

    /// A writer for the log's lines: to standard error, above the live line.
    pub(super) fn log(&self) -> impl Fn() -> LogLine + Send + Sync + 'static {
        let screen = self.live.clone();
        move || LogLine(screen.clone())
    }
}

/// Writes one line of the log.
pub(super) struct LogLine(MultiProgress);

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
