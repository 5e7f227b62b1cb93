//! Statements that write rows, and the two forms in which rows are sent: pure.
//!
//! | file | its job |
//! |---|---|
//! | `statement` | the text of a statement for a table |
//! | `counted` | the same for tables whose rows are counted |
//! | `text` | what a statement is made of |
//! | `together` | statements for rows that wait for each other |
//! | `array` | one column of many rows as a `text[]` parameter |
//! | `copy_text` | rows as lines of `COPY … FROM STDIN` |

mod array;
mod copy_text;
mod counted;
mod statement;
mod text;
mod together;

pub(super) use array::TextArray;
pub(super) use copy_text::pieces as copy_pieces;
pub(super) use statement::{StatementKind, statement, truncate};
pub(super) use text::Parameter;
pub(super) use together::{PartKind, missing_parents, referenced, set_null, together};
