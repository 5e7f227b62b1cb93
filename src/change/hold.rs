//! Why a table is held. The one place that says of each cause what it is called and where its end is seen.

/// The kind of a table's fault. Bounded: a label of metrics, and a word for scripts.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub enum HoldCause {
    /// The Agent DB has no such table, or it is a view or the like.
    TableMissing,
    /// The Agent DB's table lacks a column.
    ColumnMissing,
    /// A column of the Agent DB's table can't be written: it is generated, must have a value, or has another type.
    ColumnUnwritable,
    /// The table is UNLOGGED: in the Agent DB a crash would empty it, in the Site DB its changes are in no log.
    Unlogged,
    /// No key tells the table's rows apart, or not the right one.
    Key,
    /// The role has not the rights that it needs, on either side.
    Rights,
    /// Row-level security hides rows from the role, on either side.
    RowSecurity,
    /// Somebody has locked the table.
    Locked,
    /// The publication does not have the table.
    NotPublished,
    /// Logical replication can't send its rows: a view, a foreign table, a partition whose root is not selected.
    NotReplicable,
    /// Another pipeline writes the table, or this one writes it as a partition of another table.
    Claimed,
    /// Writing one of its rows takes too long.
    TooSlow,
    /// Too many of its rows are parked.
    TooManyFailed,
    /// A row can be neither written nor parked.
    Row,
    /// Postgres refuses whatever is written: a rule, a trigger, a fault that has no name of its own.
    Refused,
    /// It is found changed at every start.
    KeepsChanging,
    /// It was held by an earlier version, which did not store why.
    Unknown,
}

/// Where it is seen that a cause is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenGone {
    /// In the catalog of the database that it is about: looked at every few seconds.
    InCatalog,
    /// One of the table's parked rows is taken: some are tried, after waits that grow to a minute.
    ByParkedRow,
    /// By trying: the table is released, and held again if the cause is met again; after waits that grow to a minute. A change of
    /// the table in the Agent DB ends the wait.
    ByAttempt,
}

impl HoldCause {
    /// As stored, shown and counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Where its end is seen.
    #[must_use]
    pub const fn seen_gone(self) -> SeenGone {
        match self {
            Self::TableMissing
            | Self::ColumnMissing
            | Self::ColumnUnwritable
            | Self::Unlogged
            | Self::Key
            | Self::Rights
            | Self::RowSecurity
            | Self::Locked
            | Self::NotPublished
            | Self::NotReplicable
            | Self::Claimed => SeenGone::InCatalog,
            Self::TooSlow | Self::TooManyFailed => SeenGone::ByParkedRow,
            Self::Row | Self::Refused | Self::KeepsChanging | Self::Unknown => SeenGone::ByAttempt,
        }
    }

    /// When it is looked at again, for people.
    #[must_use]
    pub const fn looked_at(self) -> &'static str {
        match self.seen_gone() {
            SeenGone::InCatalog => "every few seconds",
            SeenGone::ByParkedRow | SeenGone::ByAttempt => {
                "after 4 to 60 s, and when the table is changed in the Agent DB"
            }
        }
    }
}

/// Stands between fault and remedy in a text that has both.
pub const REMEDY_FOLLOWS: &str = " — ";

/// Why a table is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The kind of fault.
    pub cause: HoldCause,
    /// The fault and its remedy, for operators.
    pub reason: String,
}

impl Hold {
    /// A table's fault.
    #[must_use]
    pub fn new(cause: HoldCause, reason: impl Into<String>) -> Self {
        Self {
            cause,
            reason: reason.into(),
        }
    }

    /// The fault, and its remedy if one is known.
    #[must_use]
    pub fn parts(&self) -> (&str, Option<&str>) {
        match self.reason.split_once(REMEDY_FOLLOWS) {
            Some((fault, remedy)) => (fault, Some(remedy)),
            None => (&self.reason, None),
        }
    }
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::*;

    #[test]
    fn every_cause_can_be_read_again() {
        for cause in HoldCause::VARIANTS {
            assert_eq!(cause.as_str().parse::<HoldCause>().unwrap(), *cause);
        }
    }
}
