//! A condition as a tree, and why a text is none.

/// Longest condition, in bytes.
pub const LONGEST: usize = 4096;

/// Deepest nesting of parentheses and NOT.
pub(super) const DEEPEST: usize = 32;

/// A condition that chooses rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition(pub(super) Expression);

/// Why a text is not a condition. Shows only the text itself, never a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// It is too long.
    #[error("the condition has more than {LONGEST} bytes")]
    TooLong,
    /// It is nested too deeply.
    #[error("the condition is nested more than {DEEPEST} levels deep")]
    TooDeep,
    /// Something stands where something else has to.
    #[error("the condition is not understood at character {position} ({found}): {expected}")]
    Unexpected {
        /// The position of the character, from 1.
        position: usize,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The table has no such column, or it is not published.
    #[error("the condition names column {column:?}, which {table} does not have or does not publish")]
    NoColumn {
        /// The table.
        table: String,
        /// The column, unquoted.
        column: String,
    },
    /// A column alone is a condition only if it is a boolean.
    #[error("the condition uses column {column:?} of {table} as if it were a boolean")]
    NotBoolean {
        /// The table.
        table: String,
        /// The column, unquoted.
        column: String,
    },
}

impl ConditionError {
    /// What to do.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        "a condition compares columns with literals: = <> < <= > >=, IN, BETWEEN, LIKE, ILIKE, IS NULL, joined by AND, OR, NOT; \
         a time may be now() - interval '1 day'"
    }
}

/// A condition's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Test { column: String, test: Test },
}

/// What is asked of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    /// The column alone.
    Holds,
    Compare(Comparison, Value),
    In(Vec<Value>),
    Between(Value, Value),
    Like {
        pattern: String,
        any_case: bool,
    },
    IsNull,
    Is(bool),
}

/// A comparison's operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
pub(super) enum Comparison {
    #[strum(serialize = "=")]
    Equal,
    #[strum(serialize = "<>")]
    Different,
    #[strum(serialize = "<")]
    Less,
    #[strum(serialize = "<=")]
    LessOrEqual,
    #[strum(serialize = ">")]
    Greater,
    #[strum(serialize = ">=")]
    GreaterOrEqual,
}

/// What a column is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// The text of a literal, which is read as the column's type.
    Literal(String),
    /// A moment, moved by an interval.
    Moment {
        moment: Moment,
        interval: Option<(Direction, String)>,
    },
}

/// A moment that the server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Now,
    Today,
}

/// Where an interval moves a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Later,
    Earlier,
}

impl Condition {
    /// The names of its columns, unquoted.
    #[must_use]
    pub fn columns(&self) -> Vec<&str> {
        let mut columns = Vec::new();
        self.0.columns(&mut columns);
        columns
    }
}

impl Expression {
    fn columns<'a>(&'a self, into: &mut Vec<&'a str>) {
        match self {
            Self::Or(parts) | Self::And(parts) => parts.iter().for_each(|part| part.columns(into)),
            Self::Not(part) => part.columns(into),
            Self::Test { column, .. } => into.push(column),
        }
    }
}
