//! What statements there are, and of what their parameters are made.

use crate::agent_db::catalog::Target;

/// What a statement does to rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::agent_db::apply) enum StatementKind {
    /// Insert full images that nothing is known to be in the way of, by `COPY`: the cheapest way by far, and refused as a
    /// whole where one key is there already.
    Copy,
    /// Insert full images, or overwrite what is there.
    Upsert {
        /// Overwrite only where something differs: a chunk mostly finds what is there already.
        only_if_different: bool,
    },
    /// Set some columns of rows that must exist.
    Partial {
        /// Which columns the images hold.
        present: Box<[bool]>,
    },
    /// Set some columns and the key of rows that must exist.
    Move {
        /// Which columns the images hold.
        present: Box<[bool]>,
    },
    /// The same as a move for rows of which an UPDATE can't set the key (`GENERATED ALWAYS AS IDENTITY`): they are deleted and
    /// inserted, with all that the Agent DB has of them.
    Reinsert {
        /// Which columns the images hold.
        present: Box<[bool]>,
    },
    /// Set the columns outside of the key that an UPDATE can't set, where they differ: such rows are deleted and inserted,
    /// with all that the Agent DB has of them. Sent behind the statement that writes the other columns.
    SetIdentity {
        /// Which columns the images hold.
        present: Box<[bool]>,
    },
    /// Delete by key.
    Delete,
    /// Insert rows that are counted.
    Insert,
    /// Delete one row for each that is given, where rows are counted.
    DeleteOne,
    /// Make one row for each that is given another one, where rows are counted.
    UpdateOne,
    /// Make the number of equal rows right, where rows are counted.
    Count,
    /// Look whether what was just written is there, and fail with `agent_db::error::CHANGED` where it is not.
    Look(Written),
    /// The same where there is no trigger and no rule, but a column that no UPDATE can set.
    LookAtIdentity(Written),
}

/// What a [`StatementKind::Look`] looks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::agent_db::apply) enum Written {
    /// Full images, under their keys.
    Images,
    /// Some columns of rows, where a row is there.
    Partial {
        /// Which columns the images hold.
        present: Box<[bool]>,
    },
    /// The same under the rows' new keys, and no row under the old ones.
    Moved {
        /// Which columns the images hold.
        present: Box<[bool]>,
    },
    /// No row.
    Nothing,
}

impl StatementKind {
    /// What it is called in Postgres.
    pub(in crate::agent_db::apply) const fn name(&self) -> &'static str {
        match self {
            Self::Copy => "COPY",
            Self::Upsert { .. } | Self::Insert => "INSERT",
            Self::Partial { .. } | Self::Move { .. } | Self::UpdateOne => "UPDATE",
            Self::Delete | Self::DeleteOne => "DELETE",
            Self::Reinsert { .. } | Self::SetIdentity { .. } | Self::Count => "DELETE and INSERT",
            Self::Look(_) | Self::LookAtIdentity(_) => "SELECT",
        }
    }

    /// The look at what this has written.
    pub(in crate::agent_db::apply) fn look(&self) -> Option<Self> {
        Some(Self::Look(match self {
            Self::Copy | Self::Upsert { .. } => Written::Images,
            Self::Partial { present } => Written::Partial {
                present: present.clone(),
            },
            Self::Move { present } | Self::Reinsert { present } => Written::Moved {
                present: present.clone(),
            },
            Self::Delete => Written::Nothing,
            // Rows that no key tells apart can't be found again: these statements look themselves.
            Self::Insert | Self::DeleteOne | Self::UpdateOne | Self::Count => return None,
            Self::SetIdentity { .. } | Self::Look(_) | Self::LookAtIdentity(_) => return None,
        }))
    }

    /// What sets the columns that this can't set; `None` where the target has no such column, or the images do not have it.
    pub(in crate::agent_db::apply) fn set_identity(&self, target: &Target) -> Option<Self> {
        let present: Box<[bool]> = match self {
            Self::Upsert { .. } => target.columns.iter().map(|_| true).collect(),
            Self::Partial { present } | Self::Move { present } => present.clone(),
            _ => return None,
        };
        let mut columns = target.columns.iter().zip(&present);
        columns
            .any(|(column, present)| *present && column.is_reinserted())
            .then_some(Self::SetIdentity { present })
    }
}

/// What a statement's parameter is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db::apply) enum Parameter {
    /// A column of the row images.
    Column(usize),
    /// A column of the images that the rows had before.
    OldColumn(usize),
    /// A part of the rows' keys (the old ones for a move).
    KeyPart(usize),
    /// A part of the rows' keys after a move.
    NewKeyPart(usize),
    /// How many rows equal each of the row images.
    Count,
}

/// A statement's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent_db::apply) struct StatementText {
    /// With `$1`, `$2`, … for the parameters.
    pub sql: String,
    /// What each parameter is made of, in order.
    pub parameters: Vec<Parameter>,
}
