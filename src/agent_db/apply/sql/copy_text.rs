//! Rows as lines of `COPY … FROM STDIN` in text form.
//!
//! The form: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>. Columns are parted by tabs and rows by
//! newlines, NULL is `\N`; a backslash, a tab, a newline or a carriage return inside of a value is escaped.

use bytes::{BufMut, Bytes, BytesMut};

use crate::change::{ColumnValue, Row};

/// Bytes after which a piece is handed over: several make one COPY, and none is so large that it must be copied again.
const PIECE: usize = 64 * 1024;

/// The rows' lines, in pieces of about 64 KiB. A piece may end within a line, so that a long row is not in memory twice.
pub(in crate::agent_db::apply) fn pieces(rows: &[&Row]) -> impl Iterator<Item = Bytes> {
    let mut lines = Lines {
        rows: rows.iter(),
        row: None,
        column: 0,
        written: 0,
    };
    std::iter::from_fn(move || {
        let mut piece = BytesMut::with_capacity(PIECE + PIECE / 8);
        while piece.len() < PIECE && lines.put_next(&mut piece) {}
        (!piece.is_empty()).then(|| piece.freeze())
    })
}

/// The place up to which the lines are written.
struct Lines<'a> {
    rows: std::slice::Iter<'a, &'a Row>,
    /// The row whose line is begun.
    row: Option<&'a Row>,
    /// Its next column.
    column: usize,
    /// How much of this column's text is written.
    written: usize,
}

impl Lines<'_> {
    /// Writes a value, or a part of a long one. False at the end.
    fn put_next(&mut self, out: &mut BytesMut) -> bool {
        let Some(row) = self.row.or_else(|| self.rows.next().copied()) else {
            return false;
        };
        let Some(value) = row.0.get(self.column) else {
            out.put_u8(b'\n');
            (self.row, self.column) = (None, 0);
            return true;
        };
        self.row = Some(row);
        if self.column > 0 && self.written == 0 {
            out.put_u8(b'\t');
        }
        match value {
            ColumnValue::Text(text) => {
                let rest = text.get(self.written..).unwrap_or_default();
                if let Some((part, rest)) = rest.split_at_checked(PIECE)
                    && !rest.is_empty()
                {
                    put_text(out, part);
                    self.written += PIECE;
                    return true;
                }
                put_text(out, rest);
            }
            // An unchanged column is never among the rows that may be inserted; see `plan`.
            ColumnValue::Null | ColumnValue::Unchanged => out.put_slice(b"\\N"),
        }
        self.column += 1;
        self.written = 0;
        true
    }
}

/// Writes a value's text with its escapes.
pub(super) fn put_text(out: &mut BytesMut, mut text: &[u8]) {
    while let Some(at) = text
        .iter()
        .position(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r'))
    {
        let (plain, rest) = text.split_at(at);
        out.put_slice(plain);
        if let Some((&special, rest)) = rest.split_first() {
            out.put_u8(b'\\');
            out.put_u8(match special {
                b'\t' => b't',
                b'\n' => b'n',
                b'\r' => b'r',
                other => other,
            });
            text = rest;
        }
    }
    out.put_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> ColumnValue {
        ColumnValue::Text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn what_parts_columns_and_rows_is_escaped_inside_of_values() {
        let rows = [
            Row([text("1"), text("plain"), ColumnValue::Null].into()),
            Row([text("2"), text("a\tb\nc\rd\\e"), text("")].into()),
            Row([text("3"), text("\\N"), text("\\.")].into()),
            Row([text("4"), text("é 🚀"), text("\u{1}\u{b}")].into()),
        ];
        let rows: Vec<&Row> = rows.iter().collect();
        let pieces: Vec<Bytes> = pieces(&rows).collect();
        assert_eq!(pieces.len(), 1);
        assert_eq!(
            std::str::from_utf8(&pieces[0]).unwrap(),
            "1\tplain\t\\N\n2\ta\\tb\\nc\\rd\\\\e\t\n3\t\\\\N\t\\\\.\n4\té 🚀\t\u{1}\u{b}\n"
        );
    }

    #[test]
    fn the_pieces_are_the_lines_and_none_is_much_longer_than_the_others() {
        let rows: Vec<Row> = (0..100)
            .map(|number| number * 100)
            .chain([PIECE, 0, PIECE + 1, 5 * PIECE, 1])
            .map(|length| Row([ColumnValue::Text(Bytes::from(vec![b'x'; length]))].into()))
            .collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let pieces: Vec<Bytes> = pieces(&rows).collect();
        assert!(pieces.len() > 5);
        assert!(pieces.iter().all(|piece| piece.len() < 3 * PIECE));
        assert_eq!(
            pieces.concat(),
            rows.iter().fold(Vec::new(), |mut all, row| {
                if let ColumnValue::Text(text) = &row.0[0] {
                    all.extend_from_slice(text);
                }
                all.push(b'\n');
                all
            })
        );
    }
}
