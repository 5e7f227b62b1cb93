//! Statements that write rows, and the two forms in which rows are sent: pure.
//!
//! | file | its job |
//! |---|---|
//! | `kind` | what statements there are |
//! | `statement` | the text of a statement for a table |
//! | `counted` | the same for tables whose rows are counted |
//! | `compare` | statements that compare rows with what the table holds |
//! | `reinsert` | statements that delete rows and insert them anew, where an UPDATE can't set a column |
//! | `look` | the statement that looks at what was written |
//! | `text` | parts of them |
//! | `together` | statements for rows that wait for each other |
//! | `array` | one column of many rows as a `text[]` parameter |
//! | `copy_text` | rows as lines of `COPY … FROM STDIN` |
//! | `staged` | values that are too large for a parameter |

mod array;
mod compare;
mod copy_text;
mod counted;
mod kind;
mod look;
mod reinsert;
mod staged;
mod statement;
mod text;
mod together;

pub(super) use array::TextArray;
pub(super) use compare::{Compared, counts, expected, unexpected};
pub(super) use copy_text::pieces as copy_pieces;
pub(super) use kind::{Parameter, StatementKind, StatementText, Written};
pub(super) use staged::{COPY_STAGED, CREATE_STAGED, read_staged, staged_lines};
pub(super) use statement::{check_copy, statement, truncate};
pub(super) use together::{PartKind, missing_parents, referenced, set_null, together};
