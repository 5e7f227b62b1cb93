//! Values that are too large for a parameter: the session's temporary table that holds them in pieces, and the statements
//! that read them there.
//!
//! A parameter is in memory three times while it is sent: as the row's value, in the message, and in the connection's
//! buffer. Lines of a COPY are sent one after the other, so a value that goes by them is in memory once.

use std::fmt::Write;

use bytes::{BufMut, Bytes, BytesMut};

use super::array::TextArray;
use super::copy_text::put_text;

/// Makes the temporary table, which is gone with the transaction, or empties it.
pub(in crate::agent_db::apply) const CREATE_STAGED: &str = "CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp.twinlog_staged \
     (array_number pg_catalog.int4, element pg_catalog.int4, piece pg_catalog.int4, value pg_catalog.text) ON COMMIT DROP; \
     TRUNCATE pg_temp.twinlog_staged";

/// Fills it with [`staged_lines`].
pub(in crate::agent_db::apply) const COPY_STAGED: &str =
    "COPY pg_temp.twinlog_staged (array_number, element, piece, value) FROM STDIN";

/// Bytes of a piece, at most: a line, its escapes included, is small beside what the daemon may take.
const PIECE: usize = 1 << 20;

/// The lines for some arrays and their numbers.
pub(in crate::agent_db::apply) fn staged_lines<'a>(
    arrays: impl Iterator<Item = (usize, TextArray<'a>)>,
) -> impl Iterator<Item = Bytes> {
    arrays.flat_map(|(number, array)| {
        (0..array.len()).flat_map(move |element| {
            let cell = array.cell(element);
            (0..)
                .zip(pieces(cell))
                .map(move |(piece, value)| line(number, element, piece, value))
        })
    })
}

/// The statement with arrays of the temporary table instead of its parameters. `numbers`: the array of each parameter.
pub(in crate::agent_db::apply) fn read_staged(sql: &str, numbers: &[usize]) -> String {
    let mut staged = String::with_capacity(sql.len() + 300 * numbers.len());
    // Every second part is the inside of a quoted identifier, or an empty one where a quote is doubled.
    for (index, part) in sql.split('"').enumerate() {
        if index > 0 {
            staged.push('"');
        }
        if index % 2 == 1 {
            staged.push_str(part);
            continue;
        }
        let mut texts = part.split('$');
        staged.push_str(texts.next().unwrap_or_default());
        for text in texts {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let (parameter, rest) = text.split_at(digits);
            let parameter: Option<usize> = parameter.parse().ok();
            match parameter.and_then(|parameter| numbers.get(parameter.checked_sub(1)?)) {
                Some(&number) => {
                    put_array(&mut staged, number);
                    staged.push_str(rest);
                }
                None => {
                    staged.push('$');
                    staged.push_str(text);
                }
            }
        }
    }
    staged
}

fn put_array(sql: &mut String, number: usize) {
    let _ = write!(
        sql,
        "(SELECT pg_catalog.array_agg(y.value ORDER BY y.element) FROM (SELECT s.element, \
         pg_catalog.string_agg(s.value, '' ORDER BY s.piece) AS value FROM pg_temp.twinlog_staged s \
         WHERE s.array_number OPERATOR(pg_catalog.=) {number} GROUP BY s.element) y)"
    );
}

/// A value's pieces: one without a value for NULL, and an empty one for an empty text.
fn pieces(value: Option<&[u8]>) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let Some(value) = rest.take()? else {
            return Some(None);
        };
        let (piece, behind) = value.split_at(end_of_piece(value));
        rest = (!behind.is_empty()).then_some(Some(behind));
        Some(Some(piece))
    })
}

/// Where the first piece ends: between two characters, as the server checks each line's encoding.
fn end_of_piece(value: &[u8]) -> usize {
    if value.len() <= PIECE {
        return value.len();
    }
    let is_within = |&at: &usize| value.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    // A character of UTF-8 has four bytes at most.
    (PIECE - 3..=PIECE).rev().find(|at| !is_within(at)).unwrap_or(PIECE)
}

fn line(number: usize, element: usize, piece: usize, value: Option<&[u8]>) -> Bytes {
    let mut line = BytesMut::with_capacity(40 + value.map_or(2, <[u8]>::len));
    let _ = write!(line, "{number}\t{element}\t{piece}\t");
    match value {
        Some(value) => put_text(&mut line, value),
        None => line.put_slice(b"\\N"),
    }
    line.put_u8(b'\n');
    line.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_are_replaced() {
        let staged = read_staged(
            r#"UPDATE "a$1""$2" SET "$1" = $2::x, b = '$' FROM unnest($1::x)"#,
            &[5, 6],
        );
        let array = |number| {
            let mut sql = String::new();
            put_array(&mut sql, number);
            sql
        };
        assert_eq!(
            staged,
            format!(
                r#"UPDATE "a$1""$2" SET "$1" = {}::x, b = '$' FROM unnest({}::x)"#,
                array(6),
                array(5)
            )
        );
    }

    #[test]
    fn the_pieces_of_a_value_are_the_value_and_end_between_characters() {
        for character in ["x", "é", "€", "🚀"] {
            for length in [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 2] {
                let value = format!(".{}", character.repeat(length / character.len()));
                let parts: Vec<&[u8]> = pieces(Some(value.as_bytes())).flatten().collect();
                assert!(
                    parts
                        .iter()
                        .all(|part| part.len() <= PIECE && std::str::from_utf8(part).is_ok())
                );
                assert_eq!(parts.concat(), value.as_bytes());
            }
        }
        assert_eq!(pieces(None).collect::<Vec<_>>(), [None]);
        assert_eq!(pieces(Some(b"")).collect::<Vec<_>>(), [Some(&b""[..])]);
    }

    #[test]
    fn lines_name_array_element_and_piece() {
        let texts = ["a\tb".to_owned(), String::new()];
        let lines: Vec<Bytes> = staged_lines([(3, TextArray::Texts(&texts))].into_iter()).collect();
        assert_eq!(lines.concat(), b"3\t0\t0\ta\\tb\n3\t1\t0\t\n");
    }
}
