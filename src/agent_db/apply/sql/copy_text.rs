//! Rows as lines of `COPY … FROM STDIN` in text form.
//!
//! The form: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>. Columns are parted by tabs and rows by
//! newlines, NULL is `\N`; a backslash, a tab, a newline or a carriage return inside of a value is escaped.

use bytes::{BufMut, Bytes, BytesMut};

use crate::change::{ColumnValue, Row};

/// Bytes after which a piece is handed over: several make one COPY, and none is so large that it must be copied again.
const PIECE: usize = 64 * 1024;

/// The rows' lines, in pieces of about 64 KiB (a longer row makes a longer piece).
pub(in crate::agent_db::apply) fn pieces(rows: &[&Row]) -> impl Iterator<Item = Bytes> {
    let mut rows = rows.iter();
    std::iter::from_fn(move || {
        let mut piece = BytesMut::with_capacity(PIECE + PIECE / 8);
        while piece.len() < PIECE
            && let Some(row) = rows.next()
        {
            put_row(&mut piece, row);
        }
        (!piece.is_empty()).then(|| piece.freeze())
    })
}

fn put_row(out: &mut BytesMut, row: &Row) {
    for (column, value) in row.0.iter().enumerate() {
        if column > 0 {
            out.put_u8(b'\t');
        }
        match value {
            ColumnValue::Text(text) => put_text(out, text),
            // An unchanged column is never among the rows that may be inserted; see `plan`.
            ColumnValue::Null | ColumnValue::Unchanged => out.put_slice(b"\\N"),
        }
    }
    out.put_u8(b'\n');
}

fn put_text(out: &mut BytesMut, mut text: &[u8]) {
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
    fn no_row_is_cut_between_pieces() {
        let rows: Vec<Row> = (0..100)
            .map(|number| Row([ColumnValue::Text(Bytes::from(vec![b'x'; number * 100]))].into()))
            .collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let pieces: Vec<Bytes> = pieces(&rows).collect();
        assert!(pieces.len() > 5);
        assert!(pieces.iter().all(|piece| piece.ends_with(b"\n")));
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
