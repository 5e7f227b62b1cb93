//! Texts of a catalog that may not be UTF-8. In a database whose encoding is SQL_ASCII a name can have any bytes, which are sent
//! as they are whatever the session's encoding.

use std::error::Error;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Kind, Type};

/// A text in which bytes that are not UTF-8 are replaced by U+FFFD: to show, and to compare with what is UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lossy(pub String);

impl<'a> FromSql<'a> for Lossy {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        *kind.kind() == Kind::Simple
    }
}

impl Lossy {
    /// A column that is a text.
    #[must_use]
    pub fn of(row: &Row, column: &str) -> String {
        row.get::<_, Self>(column).0
    }

    /// A column that is an array of texts.
    #[must_use]
    pub fn all_of(row: &Row, column: &str) -> Vec<String> {
        Self::texts(row.get(column))
    }

    /// The texts of an array.
    #[must_use]
    pub fn texts(values: Vec<Self>) -> Vec<String> {
        values.into_iter().map(|text| text.0).collect()
    }
}
