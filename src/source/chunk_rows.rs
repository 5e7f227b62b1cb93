//! The rows of a chunk while it is read: their images, and how many more may come.

use bytes::{Bytes, BytesMut};

use super::error::SourceError;
use crate::change::{ColumnValue, Row};

/// Bytes of rows after which a chunk ends early, to limit memory. Each copy worker holds one chunk.
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// Replaces a text of the Site DB that is not UTF-8, and that the driver therefore does not return (a database in
/// `SQL_ASCII` may contain any bytes, pitfall P29). Every Agent DB refuses it like the original text, so only the row
/// is parked and the table goes on.
pub(super) const NOT_UTF8: &[u8] = b"\xff";

/// How far a chunk is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    /// More rows may come.
    Open,
    /// It is full; more rows follow.
    Full,
    /// No row follows.
    Finished,
}

/// A chunk that is being read.
#[derive(Debug)]
pub(super) struct Read {
    /// Columns of a row, without that for the key that found it.
    width: usize,
    pub(super) rows: Vec<Row>,
    pub(super) found_by: Vec<usize>,
    pub(super) bytes: usize,
    /// With so many bytes it is full.
    most_bytes: usize,
    state: ReadState,
}

impl Read {
    pub(super) const fn new(width: usize, most_bytes: usize) -> Self {
        Self {
            width,
            most_bytes,
            rows: Vec::new(),
            found_by: Vec::new(),
            bytes: 0,
            state: ReadState::Open,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == ReadState::Open
    }

    /// Whether no row follows.
    pub(super) fn is_finished(&self) -> bool {
        self.state == ReadState::Finished
    }

    /// Takes a row; with it the chunk may be full.
    pub(super) fn take(&mut self, row: &tokio_postgres::SimpleQueryRow) -> Result<(), SourceError> {
        let image = if row.len() > self.width {
            let (image, position) = found_row(row, self.width)?;
            self.found_by.push(position);
            image
        } else {
            image(row, self.width)
        };
        self.bytes += image.size();
        self.rows.push(image);
        if self.bytes >= self.most_bytes {
            self.state = ReadState::Full;
        }
        Ok(())
    }

    /// Fewer rows came than were asked for.
    pub(super) fn end(&mut self) {
        if self.is_open() {
            self.state = ReadState::Finished;
        }
    }

    /// Bytes of a row on average; 0 if there is none.
    pub(super) fn average(&self) -> usize {
        self.bytes.checked_div(self.rows.len()).unwrap_or(0)
    }
}

/// How many rows to fetch next: those that probably have half of the bytes that are `left`. `row_bytes`: on average; 0 if
/// that is not known, then one row is read to learn it.
pub(super) fn fetch_rows(row_bytes: usize, left: usize) -> usize {
    /// Most rows of one FETCH. More would save no time that can be measured.
    const MOST: usize = 2000;
    (left / 2).checked_div(row_bytes).map_or(1, |rows| rows.clamp(1, MOST))
}

/// A row of a query by key and the position of the key that found it, from zero.
pub(super) fn found_row(row: &tokio_postgres::SimpleQueryRow, width: usize) -> Result<(Row, usize), SourceError> {
    let position = row
        .get(width)
        .and_then(|text| text.parse::<usize>().ok()?.checked_sub(1));
    let position = position.ok_or(SourceError::Incomplete("the key that found a row"))?;
    Ok((image(row, width), position))
}

/// A row's image. All its values are slices of one allocation.
fn image(row: &tokio_postgres::SimpleQueryRow, width: usize) -> Row {
    let value = |index| match row.try_get(index) {
        Ok(value) => value.map(str::as_bytes),
        // The driver fails to decode a value only if it is not UTF-8.
        Err(_) => Some(NOT_UTF8),
    };
    let mut buffer = BytesMut::with_capacity((0..width).map(|index| value(index).map_or(0, <[u8]>::len)).sum());
    let ends: Vec<Option<usize>> = (0..width)
        .map(|index| {
            value(index).map(|value| {
                buffer.extend_from_slice(value);
                buffer.len()
            })
        })
        .collect();
    let buffer: Bytes = buffer.freeze();
    let mut start = 0;
    Row(ends
        .into_iter()
        .map(|end| match end {
            None => ColumnValue::Null,
            Some(end) => ColumnValue::Text(buffer.slice(std::mem::replace(&mut start, end)..end)),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_fetched_by_their_bytes() {
        for (row_bytes, left, expected, why) in [
            (0, CHUNK_BYTES, 1, "nothing is known yet"),
            (100, CHUNK_BYTES, 2000, "narrow rows"),
            (100, 1000, 5, "the chunk is nearly full"),
            (4 << 20, CHUNK_BYTES, 1, "wide rows"),
            (200_000, CHUNK_BYTES, 10, "half of the chunk"),
            (4 << 20, 0, 1, "at least one"),
        ] {
            assert_eq!(fetch_rows(row_bytes, left), expected, "{why}");
        }
    }
}
