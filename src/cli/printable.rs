//! Texts from outside, made safe to print: names of tables and roles may have line breaks, which would forge a log line, and
//! escape sequences, which a terminal obeys.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use tracing_subscriber::fmt::MakeWriter;

use crate::change::is_unprintable;

/// The text in one line: what would move the cursor, or hide or reorder text, is shown by its escape, as in Rust.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, Escapes::All)
}

/// How unprintable characters are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    /// All as in Rust.
    All,
    /// All as in Rust, but for sequences that only set a colour: those pass.
    AllButColours,
    /// As in JSON, whose writer escapes only what breaks JSON itself.
    Json,
}

fn escaped(text: &str, escapes: Escapes) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find(is_unprintable) {
        let (plain, unprintable) = rest.split_at(at);
        out.push_str(plain);
        let colour = colour_length(unprintable).filter(|_| escapes == Escapes::AllButColours);
        if let Some((colour, after)) = colour.and_then(|length| unprintable.split_at_checked(length)) {
            out.push_str(colour);
            rest = after;
            continue;
        }
        let mut characters = unprintable.chars();
        if let Some(character) = characters.next() {
            // A String takes every character. All of these are in the plane that JSON's escapes reach.
            let _ = match escapes {
                Escapes::Json => write!(out, "\\u{:04x}", u32::from(character)),
                Escapes::All | Escapes::AllButColours => write!(out, "{}", character.escape_default()),
            };
        }
        rest = characters.as_str();
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The length of the sequence that sets a colour, if the text begins with one.
fn colour_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters
        .get(end..)?
        .starts_with('m')
        .then_some("\x1b[".len() + end + 1)
}

/// Writes each line of the log as one line.
#[derive(Debug)]
pub(super) struct OneLine<W> {
    pub(super) inner: W,
    pub(super) escapes: Escapes,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine {
            inner: self.inner.make_writer(),
            escapes: self.escapes,
        }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        OneLine {
            inner: self.inner.make_writer_for(meta),
            escapes: self.escapes,
        }
    }
}

impl<W: io::Write> io::Write for OneLine<W> {
    /// The subscriber writes each event with one call, line break included.
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(buffer);
        match text.strip_suffix('\n') {
            Some(line) => {
                let line = format!("{}\n", escaped(line, self.escapes));
                self.inner.write_all(line.as_bytes())?;
            }
            None => self.inner.write_all(escaped(&text, self.escapes).as_bytes())?,
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_what_people_write_is_kept() {
        for (text, expected) in [
            ("plain é 🚀 'x' \\", "plain é 🚀 'x' \\"),
            ("a\nERROR forged", "a\\nERROR forged"),
            ("\r\t\u{7f}\u{9b}31m", "\\r\\t\\u{7f}\\u{9b}31m"),
            (
                "\u{1b}[31mred\u{1b}]0;title\u{7}",
                "\\u{1b}[31mred\\u{1b}]0;title\\u{7}",
            ),
            ("left \u{202e}thgir \u{2028}", "left \\u{202e}thgir \\u{2028}"),
        ] {
            assert_eq!(one_line(text), expected);
        }
    }

    #[test]
    fn a_log_line_stays_one_line_and_may_have_colours_on_a_terminal() {
        for (escapes, expected) in [
            (Escapes::All, "\\u{1b}[1;31mERROR\\u{1b}[0m a\\nb\\u{1b}[2J\n"),
            (Escapes::AllButColours, "\u{1b}[1;31mERROR\u{1b}[0m a\\nb\\u{1b}[2J\n"),
        ] {
            let mut out = OneLine {
                inner: Vec::new(),
                escapes,
            };
            out.write_all("\u{1b}[1;31mERROR\u{1b}[0m a\nb\u{1b}[2J\n".as_bytes())
                .unwrap();
            assert_eq!(String::from_utf8(out.inner).unwrap(), expected);
        }
    }
    #[test]
    fn a_line_of_json_stays_json_with_the_same_text() {
        let line = serde_json::json!({"text": "a\nb\u{1b}[2J \u{202e}x\u{2028}\u{85}é"}).to_string();
        let mut out = OneLine {
            inner: Vec::new(),
            escapes: Escapes::Json,
        };
        out.write_all(format!("{line}\n").as_bytes()).unwrap();
        let written = String::from_utf8(out.inner).unwrap();
        assert!(!written.trim_end().contains(is_unprintable), "{written}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&written), read(&line));
    }
}
